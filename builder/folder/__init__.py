"""A dataset folder as a whole: made, described, looked through."""
