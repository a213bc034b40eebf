"""Forward passes: what goes in, which positions come out."""
