"""Completion in bash, which splits what is typed at ``=``."""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

__all__ = ["BashWords"]

_ADDED = "COMPREPLY+=($value)"


@add_completion_class
class BashWords(BashComplete):
    """Puts words together again that bash splits at ``=``, and completes the last piece alone."""

    # a space after KEY= would end the word
    source_template = BashComplete.source_template.replace(
        _ADDED, f"{_ADDED}\n            [[ $value == *= ]] && compopt -o nospace"
    )
    _before = ""
    """What bash keeps of the word that is completed: all up to the last ``=``."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and that one."""
        pieces = split_arg_string(os.environ["COMP_WORDS"])
        current = int(os.environ["COMP_CWORD"])
        words: list[str] = []
        is_joined = False
        for piece in pieces[1 : current + 1]:
            is_equals = piece == "="
            if words and (is_equals or is_joined):
                self._before = words[-1] + ("=" if is_equals else "")
                words[-1] += piece
            else:
                self._before = ""
                words.append(piece)
            is_joined = is_equals
        if current >= len(pieces):  # a space came last
            self._before = ""
            return words, ""
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Write a completion without what bash keeps."""
        # click itself takes OPTION= away
        option, equals, rest = self._before.partition("=")
        kept = rest if equals and option.startswith("-") else self._before
        value: Any = item.value
        return f"{item.type},{value.removeprefix(kept)}"
