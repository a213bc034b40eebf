"""Rows of a layer as they come from its shards, and which of them are whose."""
