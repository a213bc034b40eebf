"""What a decoder layer is made of: found by what its modules compute, and proven."""
