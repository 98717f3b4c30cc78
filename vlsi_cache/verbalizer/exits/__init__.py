"""The exits of a student: its verbalizers, kept beside it, exported and loaded."""
