"""What to look for: the concept list and its exemplars."""
