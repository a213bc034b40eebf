"""Where the patches of a picture lie, in the order of the tokens that stand for them."""
