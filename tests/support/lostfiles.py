"""What stands in a file's place after a download or a copy went wrong."""

from __future__ import annotations

__all__ = ["HTML_PAGE", "LFS_POINTER", "LOST"]

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\n"
    b"size 12345\n"
)
HTML_PAGE = b"<!DOCTYPE html>\n<html><head><title> Sign in </title></head><body>?</body></html>\n"
LOST = {
    "a git-lfs pointer to 12,345 bytes": LFS_POINTER,
    "an HTML page (Sign in)": HTML_PAGE,
    "an answer of a server (Entry not found)": b"Entry not found",
    'an answer of a server ({"error":"Repository not found"})': b'{"error":"Repository not found"}',
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "NUL bytes alone in the first 4,096": bytes(5000),
}
"""The bytes, by the words for them."""
