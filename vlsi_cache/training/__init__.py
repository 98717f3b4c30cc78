"""The engine: trains a module through one stage; knows no teacher, student or cache."""
