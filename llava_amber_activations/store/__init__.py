"""The capture store: its files and tensors, read and written."""
