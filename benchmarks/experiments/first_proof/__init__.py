"""The first proof: what is compared, on what, and how it is scored."""
