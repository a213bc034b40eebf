"""What a dataset folder is made from, read as rows."""
