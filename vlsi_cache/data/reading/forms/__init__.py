"""Rows to conversations, whatever their form."""
