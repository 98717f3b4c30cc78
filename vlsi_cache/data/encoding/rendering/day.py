"""The day that templates see. It is always the same, so that a cache does not depend on it."""

from __future__ import annotations

from typing import Final

__all__ = ["DATE_STRING", "with_pinned_day"]

DATE_STRING: Final = "26 Jul 2024"
"""Llama 3 writes today's date into the system message unless it gets one. This is the date of
Llama's own default."""

_NAME = "strftime_now"
_DAY: Final = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%-m": "7",
    "%d": "26",
    "%-d": "26",
    "%e": "26",
    "%B": "July",
    "%b": "Jul",
    "%h": "Jul",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "00",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%f": "000000",
    "%p": "AM",
    "%j": "208",
    "%F": "2024-07-26",
    "%D": "07/26/24",
    "%T": "00:00:00",
    "%Z": "UTC",
    "%z": "+0000",
}


def with_pinned_day(source: str) -> str:
    """The template, with a ``strftime_now`` of its own in front if it calls one.

    transformers hands templates a clock under this name. It lets no caller replace the clock, but a
    macro of the template's own comes before it.
    """
    if _NAME not in source:
        return source
    replaced = "".join(f" | replace('{directive}', '{value}')" for directive, value in _DAY.items())
    # The newline belongs to the tag, as transformers sets Jinja up: it is not written.
    return f"{{% macro {_NAME}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{source}"
