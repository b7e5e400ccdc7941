"""SAM 3 by its parts: frames and prompts in, candidates and tracks out. Knows no store, no concept list, no run."""
