"""The parts of `first_proof.py`: what is compared, on what, and how it is scored."""
