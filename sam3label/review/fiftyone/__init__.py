"""The only door to FiftyOne."""
