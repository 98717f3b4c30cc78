"""Streams whose encoding lacks characters that commands print."""

from __future__ import annotations

import codecs
import io
import json
import sys
from typing import Final

__all__ = ["escape_what_is_lacking"]

_NAME: Final = "vlsi-cache-escapes"


def escape_what_is_lacking() -> None:
    """Let the standard streams write escapes for characters that their encoding does not have.

    The escapes are those of JSON, so that JSON stays JSON. Without them a stream in ASCII or
    Latin-1 would end a command with Python's own error.
    """
    codecs.register_error(_NAME, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # the streams only write
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
