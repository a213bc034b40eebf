"""What comes from elsewhere, parsed once, at the edge, into checked types."""
