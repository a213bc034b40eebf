"""The report: one page, which asks nobody for anything, of what a dataset looks like."""
