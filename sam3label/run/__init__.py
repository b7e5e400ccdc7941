"""The run folder: what the model saw, what people said, and what is a label."""
