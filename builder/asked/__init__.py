"""What was asked for, checked within moments: nothing here loads torch or `datasets`."""
