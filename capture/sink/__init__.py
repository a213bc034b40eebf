"""What becomes of a pass: chunks, their lock, their provenance."""
