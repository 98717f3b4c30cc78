"""Whether a sample is the one that was recorded: same content, same response tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from vlsi_cache.data import Conversation
from vlsi_cache.errors import CacheMismatchError
from vlsi_cache.store import SampleRecord

__all__ = ["validate_content", "validate_tokens"]


def validate_content(conversation: Conversation, record: SampleRecord) -> None:
    """Refuse a conversation whose text or images differ from the recorded one's.

    Raises:
        CacheMismatchError: their content keys differ.
    """
    if record.key != conversation.key():
        raise CacheMismatchError(
            f"sample {conversation.sample_id!r} differs from the one that was dumped",
            where=conversation.origin,
            expected=f"content {record.key[:12]} (sample {record.sample_id!r})",
            found=f"content {conversation.key()[:12]}",
            mend="Dump the teacher again for this data, or train on the data of the cache",
        )


def validate_tokens(
    conversation: Conversation,
    expected: Sequence[int],
    response_ids: Sequence[int],
    word: Callable[[int], str],
) -> None:
    """Refuse a sample whose response tokens differ from the recorded ones.

    Args:
        conversation: the sample, for the message.
        expected: the teacher's response tokens.
        response_ids: the student's response tokens.
        word: text of one token, for the message.

    Raises:
        CacheMismatchError: they differ; the first difference is named.
    """
    if response_ids == expected:
        return
    pairs = enumerate(zip_longest(expected, response_ids))
    position = next(index for index, (wanted, given) in pairs if wanted != given)

    def describe(ids: Sequence[int]) -> str:
        if position >= len(ids):
            return f"none at position {position}"
        return f"{ids[position]} ({word(ids[position])!r}) at position {position}"

    raise CacheMismatchError(
        f"the student's processor gives sample {conversation.sample_id!r} other response "
        "tokens than the teacher's",
        where=conversation.origin,
        expected=f"{len(expected)} tokens, {describe(expected)}",
        found=f"{len(response_ids)} tokens, {describe(response_ids)}",
        mend="Teacher and student must share tokenizer, chat template and end-of-turn token: "
        "give the student the teacher's tokenizer_config.json and chat template",
    )
