"""Files that appear whole or not at all: written aside, locked, swept, and their errors said."""
