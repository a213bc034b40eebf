"""Batches of torch tensors: which rows, in which order, whose."""
