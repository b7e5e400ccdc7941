"""Label files that others made, read and checked."""
