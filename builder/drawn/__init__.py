"""What a dataset looks like: rows drawn from it under a budget, and figures computed of them."""
