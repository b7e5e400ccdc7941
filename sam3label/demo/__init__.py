"""Synthetic photos with exact truth, the tiny checkpoint that labels them, and the demo job."""
