"""Config `samples`: what is known of each sample, as a table, and its pictures."""
