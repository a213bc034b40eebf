"""The model: loaded, its decoder found and proven, its layers tapped."""
