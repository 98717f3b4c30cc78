"""The cache: its documents, its writer, its reader and its verification."""
