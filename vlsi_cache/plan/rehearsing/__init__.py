"""A stage's step on shapes alone: its models, its batch, and the bytes that are alive at once."""
