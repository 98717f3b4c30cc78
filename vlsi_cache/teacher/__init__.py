"""The teacher pass: from a model and conversations to a cache."""
