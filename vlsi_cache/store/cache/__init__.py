"""The cache: its documents, its writer and its reader."""
