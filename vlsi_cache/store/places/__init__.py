"""Places of caches: folders, and prefixes of object stores."""
