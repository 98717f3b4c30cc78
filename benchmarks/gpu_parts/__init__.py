"""The parts of gpu.py: what each measures, on random weights of real shapes."""
