"""What the records of a cache say, tap by tap: sums over its shards, and their summary."""
