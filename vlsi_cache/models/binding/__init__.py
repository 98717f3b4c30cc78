"""The view of a model: blocks, norm, head and taps, each proved before it is used."""
