"""Where a cache lies: a folder, or a prefix of an object store."""
