"""Scores of the demo's models on held-out images, and the summary that is made of them."""
