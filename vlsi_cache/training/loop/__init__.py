"""The Trainer's loop: its arguments, metrics, learning rates, guards and stops."""
