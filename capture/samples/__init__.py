"""The benchmark: queries, and pictures as a viewer shows them."""
