"""The stages of a run: verbalize, dump, interact, fine-tune."""
