"""Parquet shards: planned, written, and what is counted on the way."""
