"""Builder: capture stores and `.pt` folders into dataset folders, and dataset folders back."""
