"""Capture: run a LLaVA-type model over a query file and keep its activations in a capture store.

Runs where `datasets` is not installed: torch, transformers (with its typer and tqdm), accelerate,
safetensors, pillow and numpy are enough.
"""
