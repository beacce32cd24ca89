"""Pure functions of a census: what a person asked for, found or worked out in it."""
