"""Vectors in memory: gathered, used again, looked at."""
