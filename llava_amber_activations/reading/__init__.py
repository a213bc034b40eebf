"""Rows of one layer, decoded from shards."""
