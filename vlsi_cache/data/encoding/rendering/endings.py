"""The end of a turn: the text after an answer, up to the token at which the model stops."""

from __future__ import annotations

import re

from vlsi_cache.data.encoding.rendering.forms import PROBE
from vlsi_cache.data.encoding.rendering.text import any_of

__all__ = ["TurnEnding"]


class TurnEnding:
    """Finds the end of a turn in the text after its last words.

    Most templates close a turn with a special token, or with two of them. Others let the next
    turn's role end it (GLM 4.5), or end it by plain text, or not at all.

    Args:
        special: the tokenizer's special tokens.
        added: all tokens that were added to its vocabulary. Some checkpoints do not call their
            end of a turn special.
        end: the tokenizer's end-of-text token.
        beginning: its beginning-of-text token.
        question: the text of a question alone.
        generation_prompt: the text that opens the assistant's turn.
    """

    def __init__(
        self,
        special: frozenset[str],
        added: frozenset[str],
        end: str | None,
        beginning: str | None,
        question: str,
        generation_prompt: str,
    ) -> None:
        self._end = end
        self._special = any_of(special)
        self._added = any_of(token for token in special | added if token.strip())
        self._pieces = re.compile(f"{self._added.pattern}|.", re.DOTALL)
        # A token that opens every turn, or every text, is not what the last turn stops at.
        self._openings = {beginning, self._opening(question, generation_prompt)}
        before, _, after = question.partition(PROBE["user"])
        # What closes the question also closes a system message that the template writes itself.
        closing = {end, *self._special.findall(after)[:1]}
        self._headers = set(self._special.findall(before)) - closing

    def find(self, tail: str, reference: str | None) -> tuple[int, bool]:
        """Find the end of a turn.

        Args:
            tail: the text after the turn's last words.
            reference: the same, where the conversation goes on differently: it ends with this turn,
                or it goes on if ``tail`` ends there. What the two have in common closes the turn.
                None if the template refuses the other conversation.

        Returns:
            Number of characters that close the turn, and whether a stop is among them.
        """
        common = self._common(tail, reference)
        stops = list(self._special.finditer(common)) or list(self._added.finditer(common))
        # Where a generation prompt follows every turn, a header follows the stop.
        stops = [stop for stop in stops if stop.group() not in self._headers] or stops[:1]
        if stops:
            named = [stop for stop in stops if stop.group() == self._end]
            return (named or stops[-1:])[0].end(), True
        length = len(common.rstrip())
        following = re.compile(rf"\s*({self._special.pattern})").match(tail, length)
        if following is not None and following.group(1) not in self._openings:
            return following.end(), True
        return length, False

    def _opening(self, question: str, generation_prompt: str) -> str | None:
        """The token that opens a turn.

        Some generation prompts close the question first (Qwen 1.5), so one that also stands in the
        question comes before others.
        """
        prompt = self._special.findall(generation_prompt)
        shared = [token for token in self._special.findall(question) if token in prompt]
        return next(iter([*shared, *prompt]), None)

    def _common(self, tail: str, reference: str | None) -> str:
        if reference is None:
            first = self._special.search(tail)
            return "" if first is None else tail[: first.end()]
        pieces = []
        others = self._pieces.finditer(reference)
        for own, other in zip(self._pieces.finditer(tail), others, strict=False):
            if own.group() != other.group():
                break
            pieces.append(own.group())
        return "".join(pieces)
