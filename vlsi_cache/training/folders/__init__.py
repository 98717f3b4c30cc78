"""What a stage keeps on disk: its settings, its checkpoints and its result."""
