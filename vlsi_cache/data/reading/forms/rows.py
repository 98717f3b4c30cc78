"""From a dataset's raw row to a `Conversation`, or to an error that names the row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from unicodedata import category

from vlsi_cache.data.conversation import (
    RESERVED_VARIABLES,
    Conversation,
    ImagePart,
    Message,
    message_images,
)
from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.forms.forms import FORM_COLUMNS, Form, find_form
from vlsi_cache.data.reading.forms.listtexts import with_lists
from vlsi_cache.data.reading.forms.media import MEDIA_COLUMNS, validate_row_media
from vlsi_cache.data.reading.forms.placing import IMAGE_COLUMNS, place_images
from vlsi_cache.data.reading.forms.sides import is_turn
from vlsi_cache.data.reading.forms.tools import tool_schemas
from vlsi_cache.data.reading.forms.turns import read_turn
from vlsi_cache.data.reading.forms.weights import validate_row_marks
from vlsi_cache.errors import DataError, excerpt

__all__ = ["KNOWN_COLUMNS", "parse_row"]

_INVISIBLE: Final = ("Cc", "Cf")
"""Categories of characters that show nothing, such as zero-width spaces and marks of order."""
_TOOLS: Final = ("tools", "functions")
_ANSWERS: Final = ("assistant", "gpt")
_OBJECT_TAGS: Final = ("<bbox>", "<ref-object>")
"""Places for boxes and names in ms-swift's rows of grounding."""
_VARIABLES: Final = "chat_template_kwargs"
KNOWN_COLUMNS: Final = frozenset(
    {"id", _VARIABLES, *_TOOLS, *IMAGE_COLUMNS, *MEDIA_COLUMNS, *FORM_COLUMNS}
)
"""Columns that are read, at least in some form of row."""


def parse_row(row: object, number: int, context: RowContext) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the decoded JSON object, or a row of a `datasets.Dataset` with undecoded images.
        number: 0-based number of the row. It is the sample's id if the row has none.
        context: where the row lies. It remembers the fields that nothing reads.

    Raises:
        DataError: the row is not a sound conversation. Pixels are not read.
    """
    if not isinstance(row, Mapping):
        raise _no_object(row, context)
    row = with_lists(row, (*IMAGE_COLUMNS, *MEDIA_COLUMNS))
    form = find_form(row, context)
    validate_row_media(row, context)
    _validate_marks(row, form, context)
    turns = [read_turn(raw, context) for raw in form.turns]
    if not form.templated:
        _validate_plain(row, context)
    turns = place_images(turns, row, context, tagged=form.tagged)
    messages = tuple(turn.message() for turn in turns)
    _validate_answers(messages, context)
    identity = row.get("id")
    tools = tool_schemas(row, context) if form.templated else ()
    conversation = Conversation(
        str(number if identity is None else identity),
        messages,
        context.origin,
        tools,
        _variables(row, context) if form.templated else {},
        form.templated,
        form.continues and not tools and not message_images(messages),
    )
    _validate_text(conversation, context)
    context.note_unread(row, _read_columns(form))
    return conversation


def _validate_marks(row: Mapping[str, Any], form: Form, context: RowContext) -> None:
    answers = sum(raw.fields.get("role", raw.fields.get("from")) in _ANSWERS for raw in form.turns)
    validate_row_marks(row, (len(form.turns), answers), context)
    texts = (str(raw.fields.get("content") or raw.fields.get("value")) for raw in form.turns)
    if is_given(row.get("objects")) and any(tag in text for text in texts for tag in _OBJECT_TAGS):
        raise context.error(
            "row has objects, and their places in the texts, which nothing fills",
            expected="the words and boxes themselves, as the model writes them",
            found=excerpt(repr(row["objects"])),
            mend="Write them into the texts, or set data.columns: {objects: null}",
        )


def _no_object(row: object, context: RowContext) -> DataError:
    return context.error(
        "row is not a JSON object",
        found=excerpt(json.dumps(row, ensure_ascii=False, default=repr)),
        mend="The row is JSON inside of JSON text: decode it once more"
        if isinstance(row, str) and row.lstrip().startswith("{")
        else 'Put the turns of a conversation into a list: {"messages": [ … ]}'
        if isinstance(row, list) and any(map(is_turn, row))
        else None,
    )


def _read_columns(form: Form) -> set[str]:
    read = {"id", *IMAGE_COLUMNS, *MEDIA_COLUMNS, *form.columns}
    return read | {*_TOOLS, _VARIABLES} if form.templated else read


def _variables(row: Mapping[str, Any], context: RowContext) -> dict[str, Any]:
    """The variables of the template: the recipe's, and those of the row in their place."""
    own = context.decoded(row.get(_VARIABLES) or {}, _VARIABLES)
    if not isinstance(own, Mapping):
        raise context.error(f"{_VARIABLES} is not an object", found=excerpt(repr(own)))
    reserved = sorted(own.keys() & RESERVED_VARIABLES)
    if reserved:
        raise context.error(
            f"{_VARIABLES} holds what belongs to the conversation itself", found=", ".join(reserved)
        )
    return {**context.settings.template_variables, **own}


def _validate_plain(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse fields beside a plain text that only a conversation can have."""
    given = [name for name in (*IMAGE_COLUMNS, *_TOOLS) if is_given(row.get(name))]
    if given:
        raise context.error(
            f"row has text, which is plain, and {given[0]}, which belongs to a conversation",
            mend="Write a conversation, or name the columns in data.columns",
        )


def _validate_answers(messages: Sequence[Message], context: RowContext) -> None:
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise context.error("no turn is the assistant's", mend="Drop the sample")
    for answer in answers:
        if any(isinstance(part, ImagePart) for part in answer.parts):
            raise context.error(
                "the assistant's turn holds an image",
                mend="Move the image to a user's turn: answers are text",
            )
        if not _is_visible(answer.text) and "tool_calls" not in answer.fields:
            raise context.error("response is empty", mend="Drop the turn, or write the answer")
    if not any(answer.learned for answer in answers):
        raise context.error(
            "no turn of the assistant is learned", mend="Drop the sample, or give a turn weight 1"
        )


def _is_visible(text: str) -> bool:
    """Whether a text has more than blanks and characters without a width."""
    return any(not char.isspace() and category(char) not in _INVISIBLE for char in text)


def _validate_text(conversation: Conversation, context: RowContext) -> None:
    """Refuse what no tokenizer takes and no file holds, such as half of a surrogate pair."""
    try:
        conversation.sample_id.encode()
        for turn in conversation.messages:
            turn.text.encode()
        extras = [dict(turn.fields) for turn in conversation.messages if turn.fields]
        extras += [dict(tool) for tool in conversation.tools]
        extras += [dict(conversation.template_variables)]
        if any(extras):
            json.dumps(extras, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise context.error(
            "a text or the id holds a lone surrogate, which is not a character",
            found=ascii(error.object[error.start : error.end]),
            mend="Take it out, or write the whole character",
        ) from error
    except ValueError as error:
        raise context.error(
            "a field of the row holds NaN or infinity, which JSON does not have",
            mend="Write null, or take the field out",
        ) from error
    except (TypeError, RecursionError) as error:
        raise context.error(f"a field of the row is not plain JSON ({error})") from error
