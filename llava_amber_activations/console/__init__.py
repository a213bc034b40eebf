"""What is said beside results and errors: how much of it, progress, and what a Ctrl-C leaves."""
