"""The forms in which rows hold a conversation, each turned into a list of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.data.reading.forms.turns import RawTurn
from vlsi_cache.errors import excerpt

__all__ = ["FORM_COLUMNS", "NO_FORM", "THOUGHT_COLUMN", "TURN_COLUMNS", "Form", "find_form"]

NO_FORM: Final = "row is not a conversation"
"""The problem of a row that has none of the forms, not even in part."""

TURN_COLUMNS: Final = ("messages", "conversations", "conversation", "dialog", "dialogue")
_LLAVA_COLUMNS: Final = ("conversations", "conversation")
_PAIRS: Final = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("problem", "solution"),
)
_CONTINUED: Final = frozenset({("prompt", "completion"), ("prompt", "chosen")})
"""Pairs whose answer goes on with the prompt, as TRL reads them."""
_SYSTEM_COLUMNS: Final = ("system", "system_prompt", "system_message")
_LABELLED: Final = ("completion", "messages")
"""Columns beside which a ``label`` is KTO's: TRL's, and ms-swift's."""
_SIDES: Final = ("user", "assistant")
_HISTORY: Final = "history"
THOUGHT_COLUMN: Final = "reasoning_content"
"""The column that holds the thought before a row's one answer."""
_TURN_KEYS: Final = ("role", "from", "speaker")
"""Keys of a turn. A row that has one of them is no text for a base model."""
FORM_COLUMNS: Final = frozenset(
    {"texts", "text", "chosen", "instruction", "context", _HISTORY, THOUGHT_COLUMN}
    | {*TURN_COLUMNS, *_SYSTEM_COLUMNS}
    | {name for pair in _PAIRS for name in pair}
)
"""Columns that may hold a conversation."""


@dataclass(frozen=True, slots=True)
class Form:
    """A row's conversation, before its turns are read."""

    turns: Sequence[RawTurn]
    """The turns in their order."""
    columns: frozenset[str]
    """The row's columns that hold them."""
    tagged: bool = False
    """Whether ``<image>`` in a text is a tag, even if the row has no images."""
    templated: bool = True
    """Whether the turns are a conversation, and not plain text."""
    continues: bool = False
    """Whether an answer that is text goes on with a prompt that is text."""


def find_form(row: Mapping[str, Any], context: RowContext) -> Form:
    """Find the first form that the row has.

    Raises:
        DataError: the row has none of the forms, or one of them in part.
    """
    for read in (_conversation, _texts, _alpaca, _preferred, _pair, _plain):
        form = read(row, context)
        if form is not None and not form.templated:
            return form
        if form is not None:
            _validate_wanted(row, form, context)
            return _with_system(form, row, context)
    _validate_turns(row, context)
    raise context.error(
        NO_FORM,
        expected="a field messages (role, content) or conversations (from, value), or another "
        "form of docs/data.md",
        found="fields " + (", ".join(map(str, row)) or "none"),
        mend=_advice(row),
    )


def _validate_turns(row: Mapping[str, Any], context: RowContext) -> None:
    """Refuse a row that has a place for turns, and nothing in it."""
    for name in TURN_COLUMNS:
        if row.get(name) is not None:
            raise context.error(f"{name} is empty", mend="Drop the sample")


def _validate_wanted(row: Mapping[str, Any], form: Form, context: RowContext) -> None:
    """Refuse an answer that KTO's ``label`` marks as a bad one. Numbers may be classes."""
    if row.get("label") is False and not form.columns.isdisjoint(_LABELLED):
        raise context.error(
            "label is False, which marks the completion as one not to learn",
            mend="Drop the row, or leave the mark out with data.columns: {label: null}",
        )


def _advice(row: Mapping[str, Any]) -> str:
    if {"role", "content"} <= row.keys() or {"from", "value"} <= row.keys():
        return 'Put the turns of a conversation into a list: {"messages": [ … ]}'
    cased = [name for name in row if name not in FORM_COLUMNS and name.lower() in FORM_COLUMNS]
    renamed = ", ".join(f"{name}: {name.lower()}" for name in cased) or "theirs: ours"
    return f"Name the columns in data.columns, as {{{renamed}}}"


def _conversation(row: Mapping[str, Any], context: RowContext) -> Form | None:
    for name in TURN_COLUMNS:
        if is_given(row.get(name)):
            turns = _turns(row[name], name, context)
            raw = [RawTurn(turn, f"{name}[].") for turn in turns]
            return Form(raw, frozenset({name}), tagged=name in _LLAVA_COLUMNS)
    return None


def _texts(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """The Cauldron's ``texts``: questions and answers about the row's images."""
    if not is_given(row.get("texts")):
        return None
    turns: list[RawTurn] = []
    for entry in _turns(row["texts"], "texts", context):
        context.note_unread(entry, {"system", "user", "assistant"}, "texts[].")
        roles = ("system", "user", "assistant") if is_given(entry.get("system")) else _SIDES
        turns += [_said(role, entry.get(role), f"texts[].{role}", context) for role in roles]
    return Form(turns, frozenset({"texts"}))


def _alpaca(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """Alpaca's ``instruction``, ``input`` and ``output``, and Dolly's names for the same."""
    answer = next((name for name in ("output", "response") if _is_text(row, name)), None)
    asked = [name for name in ("instruction", "input", "context") if is_given(row.get(name))]
    if row.get("instruction") is None or not asked or answer is None:
        return None
    texts = [_text(row[name], name, context) for name in asked]
    turns = [_said("user", "\n".join(texts), "instruction", context)]
    turns += [_said("assistant", row[answer], answer, context)]
    form = _with_thought(Form(turns, frozenset({*asked, answer})), row, answer)
    return _with_history(form, row)


def _with_history(form: Form, row: Mapping[str, Any]) -> Form:
    """The form after the turns of ``history``. Other things of that name are not read."""
    history = _decoded_list(row.get(_HISTORY))
    if history and all(map(_is_turn, history)):
        turns = [RawTurn(turn, f"{_HISTORY}[].") for turn in history]
    elif history and all(map(_is_exchange, history)):
        turns = [
            RawTurn({"role": role, "content": text})
            for pair in history
            if any(pair)
            for role, text in zip(_SIDES, pair, strict=True)
        ]
    else:
        return form
    return Form([*turns, *form.turns], form.columns | {_HISTORY})


def _decoded_list(value: Any) -> list[Any]:
    """A list, or the list in a text of JSON. Whatever else is empty."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_row_json(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )


def _is_exchange(value: object) -> bool:
    """Whether a value is a pair of a question and its answer."""
    return (
        isinstance(value, list)
        and len(value) == len(_SIDES)
        and all(isinstance(text, str) for text in value)
    )


def _preferred(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """A preference: the chosen answer, with its prompt inside or beside it."""
    if not is_given(row.get("chosen")):
        return None
    chosen = context.decoded(row["chosen"], "chosen") if _is_list_text(row["chosen"]) else None
    chosen = row["chosen"] if chosen is None else chosen
    columns = frozenset({"prompt", "chosen"})
    if isinstance(chosen, list):
        answered = _part("assistant", chosen, "chosen", context)
        prompt = (
            _part("user", row["prompt"], "prompt", context) if is_given(row.get("prompt")) else []
        )
        if _begins_with(answered, prompt):
            return Form(answered, columns)
        if answered[0].fields.get("role") in ("system", "user"):
            raise context.error("chosen begins with another prompt than prompt", mend="Keep one")
        return Form([*_unlearned(prompt), *answered], columns)
    if not is_given(row.get("prompt")):
        raise context.error(
            "chosen is text, and there is no prompt",
            found=excerpt(repr(chosen)),
            mend="Split it into prompt and chosen, or into messages",
        )
    return _joined(row, "prompt", "chosen", context)


def _begins_with(turns: Sequence[RawTurn], prompt: Sequence[RawTurn]) -> bool:
    """Whether the prompt's turns stand at the beginning, perhaps after a system message."""
    said = [(turn.fields.get("role"), turn.fields.get("content")) for turn in turns]
    asked = [(turn.fields.get("role"), turn.fields.get("content")) for turn in prompt]
    starts = (0, 1) if said and said[0][0] == "system" else (0,)
    return any(said[start : start + len(asked)] == asked for start in starts)


def _pair(row: Mapping[str, Any], context: RowContext) -> Form | None:
    for question, answer in _PAIRS:
        if is_given(row.get(question)) and row.get(answer) is not None:
            return _joined(row, question, answer, context)
    return None


def _joined(row: Mapping[str, Any], question: str, answer: str, context: RowContext) -> Form:
    asked = _unlearned(_part("user", row[question], question, context))
    answered = _part("assistant", row[answer], answer, context)
    are_texts = not any(_is_turns(row[name]) for name in (question, answer))
    continues = are_texts and (question, answer) in _CONTINUED
    form = Form([*asked, *answered], frozenset({question, answer}), continues=continues)
    return _with_history(_with_thought(form, row, answer), row)


def _with_thought(form: Form, row: Mapping[str, Any], answer: str) -> Form:
    """The form with the row's own column for the thought before an answer that is text."""
    is_text = isinstance(row[answer], str) and not _is_turns(row[answer])
    if not is_text or not is_given(row.get(THOUGHT_COLUMN)):
        return form
    *before, said = form.turns
    fields = {**said.fields, THOUGHT_COLUMN: row[THOUGHT_COLUMN]}
    turns = [*before, RawTurn(fields, said.path, said.learned)]
    return Form(turns, form.columns | {THOUGHT_COLUMN}, form.tagged)


def _plain(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """A text for a base model."""
    if not is_given(row.get("text")):
        return None
    beside = [name for name in _TURN_KEYS if is_given(row.get(name))]
    if beside:
        raise context.error(
            f"row has text, which is plain, and {beside[0]}, which belongs to a turn",
            mend='Put the turns of a conversation into a list: {"messages": [ … ]}',
        )
    turns = [_said("assistant", row["text"], "text", context)]
    return Form(turns, frozenset({"text"}), templated=False)


def _with_system(form: Form, row: Mapping[str, Any], context: RowContext) -> Form:
    """The form with the row's own column for the system's message."""
    for name in _SYSTEM_COLUMNS:
        if not is_given(row.get(name)):
            continue
        said = _said("system", row[name], name, context)
        columns = form.columns | {name}
        first = form.turns[0].fields if form.turns else {}
        if first.get("role", first.get("from")) != "system":
            return Form([said, *form.turns], columns, form.tagged)
        if first.get("content", first.get("value")) != row[name]:
            raise context.error(
                f"row has {name}, and its first turn is another message of the system",
                mend="Keep one of them",
            )
        return Form(form.turns, columns, form.tagged)
    return form


def _part(role: str, value: object, name: str, context: RowContext) -> list[RawTurn]:
    """The turns of one side: a text, or a list of messages."""
    if _is_turns(value):
        return [RawTurn(turn, f"{name}[].") for turn in _turns(value, name, context)]
    return [_said(role, value, name, context)]


def _unlearned(turns: Sequence[RawTurn]) -> list[RawTurn]:
    """The turns of a prompt. They are given, and not learned."""
    return [RawTurn(turn.fields, turn.path, learned=False) for turn in turns]


def _said(role: str, text: object, name: str, context: RowContext) -> RawTurn:
    return RawTurn({"role": role, "content": _text(text, name, context)})


def _text(value: object, name: str, context: RowContext) -> str:
    if not isinstance(value, str):
        raise context.error(f"{name} is not text", found=excerpt(repr(value)))
    return value


def _is_text(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), str)


def _is_turns(value: object) -> bool:
    """Whether a value is a list of turns, perhaps as JSON."""
    return isinstance(value, list) or _is_list_text(value)


def _is_list_text(value: object) -> bool:
    """Whether a text may be a list of turns as JSON."""
    return isinstance(value, str) and value.lstrip().startswith('[{"')


def _turns(value: object, name: str, context: RowContext) -> Sequence[Mapping[str, Any]]:
    turns = context.decoded(value, name) if _is_list_text(value) else value
    turns = _transposed(turns) if isinstance(turns, Mapping) else turns
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise context.error(
            f"{name} is not a list of turns",
            expected=("" if name in TURN_COLUMNS else "text, or ")
            + '[{"role": …, "content": …}, …]',
            found=excerpt(repr(turns)),
        )
    if not turns:
        raise context.error(f"{name} is empty", mend="Drop the sample")
    return turns


def _transposed(columns: Mapping[str, Any]) -> object:
    """The list of turns behind the lists of their fields, as `datasets` stored it once."""
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) != len(columns) or len({len(values) for values in lists}) != 1:
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
