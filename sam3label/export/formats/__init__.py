"""One module a format, each with one `write_*` that knows nothing of runs or other formats."""
