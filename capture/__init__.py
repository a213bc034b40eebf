"""Capture: run a LLaVA-type model over a query file and keep its activations in a capture store.

Runs where `datasets` is not installed: torch, the extra `capture`, safetensors, numpy, typer and
tqdm are enough.
"""
