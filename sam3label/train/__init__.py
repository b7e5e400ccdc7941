"""Losses and trainers."""
