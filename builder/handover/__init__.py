"""Exports in the layouts of other trainers, which their own loaders read."""
