"""A dataset folder, or a dataset repo on the Hub, as one thing."""
