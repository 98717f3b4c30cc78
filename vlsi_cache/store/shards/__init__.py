"""One shard's file: arrays, their codecs and bounds, in a zip."""
