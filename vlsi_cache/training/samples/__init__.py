"""Which samples a stage reads, in which order, and the loader that reads them."""
