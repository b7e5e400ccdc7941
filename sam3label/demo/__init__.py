"""The demo job and its drawn scenes; the demo checkpoint's weights."""
