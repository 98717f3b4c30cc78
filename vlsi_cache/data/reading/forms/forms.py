"""The forms in which rows hold a conversation, each turned into a list of turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.data.reading.files.strictjson import parse_row_json
from vlsi_cache.data.reading.forms.exchanges import turns_of_exchanges
from vlsi_cache.data.reading.forms.sides import (
    TURN_COLUMNS,
    is_list_text,
    is_turn,
    is_turns,
    said,
    side_of,
    text_of,
    turns_of,
    unlearned,
)
from vlsi_cache.data.reading.forms.turns import RawTurn, role_of
from vlsi_cache.errors import excerpt

__all__ = ["FORM_COLUMNS", "NO_FORM", "THOUGHT_COLUMN", "Form", "find_form"]

NO_FORM: Final = "row is not a conversation"
"""The problem of a row that has none of the forms, not even in part."""

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
_PROMPTS: Final = ("prompt", "question", "instruction", "query", "problem", "input")
"""Columns of the prompt beside ``chosen``, the first of which is taken."""
_LATE_ANSWERS: Final = ("chosen", "completion", "response", "answer", "output", "solution")
"""Columns that may hold the answer to a conversation that ends with a question."""
_CALLS: Final = "answers"
"""xLAM's column of the calls that answer a query."""
_CONTINUED: Final = frozenset({("prompt", "completion"), ("prompt", "chosen")})
"""Pairs whose answer goes on with the prompt, as TRL reads them."""
_SYSTEM_COLUMNS: Final = ("system", "system_prompt", "system_message")
_LABELLED: Final = ("completion", *TURN_COLUMNS)
"""Columns beside which a ``label`` is KTO's: TRL's, ms-swift's, and that of turns."""
_KTO: Final = "kto_tag"
"""LLaMA-Factory's mark, which has no other meaning."""
_SIDES: Final = ("user", "assistant")
_HISTORY: Final = "history"
THOUGHT_COLUMN: Final = "reasoning_content"
"""The column that holds the thought before a row's one answer."""
_TURN_KEYS: Final = ("role", "from", "speaker")
"""Keys of a turn. A row that has one of them is no text for a base model."""
FORM_COLUMNS: Final = frozenset(
    {"texts", "text", "chosen", "instruction", "context", _HISTORY, THOUGHT_COLUMN, _CALLS}
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
    for name in ("label", _KTO):
        if row.get(name) is False and (name == _KTO or not form.columns.isdisjoint(_LABELLED)):
            raise context.error(
                f"{name} is False, which marks the completion as one not to learn",
                mend=f"Drop the row, or leave the mark out with data.columns: {{{name}: null}}",
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
            turns = turns_of(row[name], name, context)
            raw = turns_of_exchanges(turns, name)
            raw = raw or [RawTurn(turn, f"{name}[].") for turn in turns]
            form = Form(raw, frozenset({name}), tagged=name in _LLAVA_COLUMNS)
            return _answered(form, row, name, context)
    return None


def _answered(form: Form, row: Mapping[str, Any], name: str, context: RowContext) -> Form:
    """The form with the chosen answer, if the turns end with a question (LLaMA-Factory's DPO).

    Earlier answers are given then, as those of a prompt are.

    Raises:
        DataError: an answer stands under another name.
    """
    last = form.turns[-1].fields
    if role_of(last.get("role", last.get("from"))) not in ("user", "tool"):
        return form
    late = next((key for key in _LATE_ANSWERS if is_given(row.get(key))), None)
    if late is None:
        return form
    if late != "chosen":
        raise context.error(
            f"{name} ends with a question, and {late} stands beside it",
            mend=f"Put the answer into {name}. Or set data.columns: {{{name}: prompt}}, or "
            f"{{{late}: null}} to leave it out",
        )
    answer = side_of("assistant", row[late], late, context)
    turns = answer if _begins_with(answer, form.turns) else [*unlearned(form.turns), *answer]
    return Form(turns, form.columns | {late}, form.tagged)


def _texts(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """The Cauldron's ``texts``: questions and answers about the row's images."""
    if not is_given(row.get("texts")):
        return None
    turns: list[RawTurn] = []
    for entry in turns_of(row["texts"], "texts", context):
        context.note_unread(entry, {"system", "user", "assistant"}, "texts[].")
        roles = ("system", "user", "assistant") if is_given(entry.get("system")) else _SIDES
        turns += [said(role, entry.get(role), f"texts[].{role}", context) for role in roles]
    return Form(turns, frozenset({"texts"}))


def _alpaca(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """Alpaca's ``instruction``, ``input`` and ``output``, and Dolly's names for the same."""
    answer = next((name for name in ("output", "response") if isinstance(row.get(name), str)), None)
    asked = [name for name in ("instruction", "input", "context") if is_given(row.get(name))]
    if row.get("instruction") is None or not asked or answer is None:
        return None
    texts = [text_of(row[name], name, context) for name in asked]
    turns = [said("user", "\n".join(texts), "instruction", context)]
    turns += [said("assistant", row[answer], answer, context)]
    form = _with_thought(Form(turns, frozenset({*asked, answer})), row, answer)
    return _with_history(form, row)


def _with_history(form: Form, row: Mapping[str, Any]) -> Form:
    """The form after the turns of ``history``. Other things of that name are not read."""
    history = _decoded_list(row.get(_HISTORY))
    if history and all(map(is_turn, history)):
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
    chosen = context.decoded(row["chosen"], "chosen") if is_list_text(row["chosen"]) else None
    chosen = row["chosen"] if chosen is None else chosen
    asked = next((name for name in _PROMPTS if is_given(row.get(name))), None)
    columns = frozenset({"chosen"} if asked is None else {asked, "chosen"})
    if isinstance(chosen, list | Mapping):
        answered = side_of("assistant", chosen, "chosen", context)
        prompt = [] if asked is None else side_of("user", row[asked], asked, context)
        if _begins_with(answered, prompt):
            return Form(answered, columns)
        if answered[0].fields.get("role") in ("system", "user"):
            raise context.error(f"chosen begins with another prompt than {asked}", mend="Keep one")
        return Form([*unlearned(prompt), *answered], columns)
    if asked is None:
        raise context.error(
            "chosen is text, and there is no prompt",
            found=excerpt(repr(chosen)),
            mend="Split it into prompt and chosen, or into messages",
        )
    if asked == "instruction" and is_given(row.get("input")):
        texts = [text_of(row[name], name, context) for name in (asked, "input")]
        row = {**row, asked: "\n".join(texts)}
        joined = _joined(row, asked, "chosen", context)
        return Form(joined.turns, joined.columns | {"input"}, joined.tagged)
    _validate_asked(row, asked, "chosen", context)
    return _joined(row, asked, "chosen", context)


def _validate_asked(
    row: Mapping[str, Any], question: str, answer: str, context: RowContext
) -> None:
    """Refuse a passage that the question is about, and that nothing would read."""
    for name in ("context", "input"):
        passage = row.get(name)
        is_read = name in (question, answer) or passage in (row[question], row[answer])
        is_read = is_read or (isinstance(row[question], str) and str(passage) in row[question])
        if isinstance(passage, str) and is_given(passage) and not is_read:
            raise context.error(
                f"row has {name} beside {question}, where nothing reads it",
                found=excerpt(passage),
                mend=f"Write it into {question}, set data.columns: {{{question}: instruction, "
                f"{answer}: output}} to put it after the question, or {{{name}: null}} to leave "
                "it out",
            )


def _begins_with(turns: Sequence[RawTurn], prompt: Sequence[RawTurn]) -> bool:
    """Whether the prompt's turns stand at the beginning, perhaps after a system message."""
    own = [_words_of(turn) for turn in turns]
    asked = [_words_of(turn) for turn in prompt]
    starts = (0, 1) if own and own[0][0] == "system" else (0,)
    return any(own[start : start + len(asked)] == asked for start in starts)


def _words_of(turn: RawTurn) -> tuple[object, object]:
    """The role of a turn and what it says, under either names."""
    fields = turn.fields
    role = fields.get("role") or fields.get("from")
    content = fields.get("content")
    return role_of(role) or role, fields.get("value") if content is None else content


def _pair(row: Mapping[str, Any], context: RowContext) -> Form | None:
    for question, answer in _PAIRS:
        if is_given(row.get(question)) and row.get(answer) is not None:
            _validate_asked(row, question, answer, context)
            return _joined(row, question, answer, context)
    return _called(row, context)


def _called(row: Mapping[str, Any], context: RowContext) -> Form | None:
    """XLAM's ``query`` and the calls that answer it, beside its ``tools``."""
    if not all(is_given(row.get(name)) for name in ("query", "tools", _CALLS)):
        return None
    asked = unlearned([said("user", row["query"], "query", context)])
    called = RawTurn({"role": "assistant", "tool_calls": row[_CALLS]}, f"{_CALLS}[].")
    return Form([*asked, called], frozenset({"query", _CALLS}))


def _joined(row: Mapping[str, Any], question: str, answer: str, context: RowContext) -> Form:
    asked = unlearned(side_of("user", row[question], question, context))
    answered = side_of("assistant", row[answer], answer, context)
    are_texts = not any(is_turns(row[name]) for name in (question, answer))
    continues = are_texts and (question, answer) in _CONTINUED
    form = Form([*asked, *answered], frozenset({question, answer}), continues=continues)
    return _with_history(_with_thought(form, row, answer), row)


def _with_thought(form: Form, row: Mapping[str, Any], answer: str) -> Form:
    """The form with the row's own column for the thought before an answer that is text."""
    is_text = isinstance(row[answer], str) and not is_turns(row[answer])
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
    turns = [said("assistant", row["text"], "text", context)]
    return Form(turns, frozenset({"text"}), templated=False)


def _with_system(form: Form, row: Mapping[str, Any], context: RowContext) -> Form:
    """The form with the row's own column for the system's message."""
    for name in _SYSTEM_COLUMNS:
        if not is_given(row.get(name)):
            continue
        is_list = isinstance(row[name], list)  # blocks of text, as Anthropic's and Bedrock's
        message = (
            RawTurn({"role": "system", "content": row[name]}, f"{name}[].")
            if is_list
            else said("system", row[name], name, context)
        )
        columns = form.columns | {name}
        first = form.turns[0].fields if form.turns else {}
        if first.get("role", first.get("from")) != "system":
            return Form([message, *form.turns], columns, form.tagged)
        if first.get("content", first.get("value")) != row[name]:
            raise context.error(
                f"row has {name}, and its first turn is another message of the system",
                mend="Keep one of them",
            )
        return Form(form.turns, columns, form.tagged)
    return form
