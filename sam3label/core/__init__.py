"""Frozen values, the mask codec, whole files and folders: what every room shares."""
