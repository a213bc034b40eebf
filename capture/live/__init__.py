"""Batches straight from the running model: what is tapped, its rows on the device, mixed."""
