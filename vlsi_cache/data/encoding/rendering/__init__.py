"""Conversations to text by the chat template, and where the answers stand in it."""
