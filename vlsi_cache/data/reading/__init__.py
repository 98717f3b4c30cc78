"""From files and datasets to conversations."""
