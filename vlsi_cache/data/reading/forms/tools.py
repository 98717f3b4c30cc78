"""Calls of tools and schemas of tools, in the shape that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsi_cache.data.reading.context import RowContext, is_given
from vlsi_cache.errors import excerpt

__all__ = ["CALL_KEYS", "called_tools", "tool_calls", "tool_schemas"]

CALL_KEYS = ("tool_calls", "function_call", "tool_call", "function_calls", "toolCalls")
"""Fields of a turn that hold calls."""
_ARGUMENTS = ("arguments",)
_OTHER_ARGUMENTS = ("parameters", "input", "args")
"""Other names of a call's arguments: Llama's, Anthropic's and LangChain's."""
_CALL_TYPES = ("function", "function_call", "tool_call", "tool_use")
"""Types of a call: OpenAI's two, LangChain's and Anthropic's."""
_SCHEMA_KEYS = {"input_schema": "parameters", "inputSchema": "parameters"}
"""Other names, of Anthropic and of MCP, for what templates read."""


def tool_calls(turn: Mapping[str, Any], path: str, context: RowContext) -> list[dict[str, Any]]:
    """The calls of an assistant's turn: its ``tool_calls``, or another name of them.

    Raises:
        DataError: a call has no name, or its arguments are not an object.
    """
    given = [name for name in CALL_KEYS if is_given(turn.get(name))]
    if not given:
        return []
    if len(given) > 1:
        raise context.error(f"a turn holds both {given[0]} and {given[1]}", mend="Keep one of them")
    return called_tools(turn[given[0]], f"{path}{given[0]}", context)


def called_tools(value: object, name: str, context: RowContext) -> list[dict[str, Any]]:
    """The calls in a field that holds one, a list of them, or either as JSON text.

    Raises:
        DataError: a call has no name, or its arguments are not an object.
    """
    calls = context.decoded(value, name)
    calls = calls if isinstance(calls, list) else [calls]
    return [_call(context.decoded(call, name), name, context) for call in calls]


def _call(call: object, name: str, context: RowContext) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, Mapping) else call
    called = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not called:
        raise context.error(
            f"{name} holds something that is not a call of a tool",
            expected='{"type": "function", "function": {"name": …, "arguments": {…}}}',
            found=excerpt(repr(call)),
        )
    kind = call.get("type")
    if kind not in (None, "", *_CALL_TYPES):
        expected = " or ".join(_CALL_TYPES)
        raise context.error(f"{name} calls a tool of another type", expected=expected, found=kind)
    places = {"call": call} if function is call else {"call": call, "function": function}
    names = _argument_names(places)
    context.note_unread(call, {"id", "type", "function", "name", *names}, f"{name}[].")
    if function is not call:
        context.note_unread(function, {"name", *names}, f"{name}[].function.")
    arguments = _arguments(places, names, name, context)
    identity = {"id": call["id"]} if is_given(call.get("id")) else {}
    return {
        **identity,
        "type": "function",
        "function": {"name": str(called), "arguments": arguments},
    }


def _argument_names(places: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The names under which a call's arguments are sought.

    Where ``arguments`` stands, even empty, it is alone: ``parameters`` beside it are a schema.
    """
    has_own = any(fields.get("arguments") is not None for fields in places.values())
    if has_own:
        return _ARGUMENTS
    has_schema = any(_is_schema(fields.get("parameters")) for fields in places.values())
    return tuple(key for key in _OTHER_ARGUMENTS if not (has_schema and key == "parameters"))


def _is_schema(value: object) -> bool:
    """Whether parameters are the types of a tool's arguments, and not arguments."""
    return (
        isinstance(value, Mapping)
        and value.get("type") == "object"
        and (len(value) == 1 or isinstance(value.get("properties"), Mapping))
    )


def _arguments(
    places: Mapping[str, Mapping[str, Any]],
    names: tuple[str, ...],
    name: str,
    context: RowContext,
) -> dict[str, Any]:
    """The arguments of a call, which stand in its function or beside it."""
    given = {
        f"{place}.{key}": fields[key]
        for place, fields in places.items()
        for key in names
        if is_given(fields.get(key))
    }
    arguments: object = {}
    for number, value in enumerate(given.values()):
        found = context.decoded(value, f"{name}[].arguments")
        if isinstance(found, str) and found.lstrip().startswith("{"):
            found = context.decoded(found, f"{name}[].arguments")  # encoded twice
        if not isinstance(value, str):
            context.note_filled(found, f"{name}[].arguments")
        if number and found != arguments:
            raise context.error(
                f"{name} holds a call with two different arguments",
                found=" and ".join(given),
                mend="Keep one of them",
            )
        arguments = found
    if not isinstance(arguments, Mapping):
        raise context.error(
            f"{name}[].arguments is not an object",
            expected="a JSON object, or its text",
            found=excerpt(repr(arguments)),
        )
    return dict(arguments)


def tool_schemas(row: Mapping[str, Any], context: RowContext) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row: its ``tools``, or the older ``functions``. Text is read as JSON.

    Raises:
        DataError: the field is not a list of objects with a name.
    """
    given = [name for name in ("tools", "functions") if is_given(row.get(name))]
    if len(given) > 1:
        raise context.error("row holds both tools and functions", mend="Keep one of them")
    if not given:
        return ()
    name = given[0]
    tools = context.decoded(row[name], name)
    if not isinstance(row[name], str):
        context.note_filled(tools, name)
    tools = [] if tools is None else tools if isinstance(tools, list) else [tools]
    return tuple(_schema(context.decoded(tool, name), name, context) for tool in tools)


def _schema(tool: object, name: str, context: RowContext) -> Mapping[str, Any]:
    if isinstance(tool, Mapping):
        if isinstance(tool.get("function"), str):
            tool = {**tool, "function": context.decoded(tool["function"], f"{name}[].function")}
        if is_given(tool.get("function")) and is_given(tool.get("type")):
            return tool
        if is_given(tool.get("function")):
            return {"type": "function", **{key: tool[key] for key in tool if key != "type"}}
        if is_given(tool.get("name")):
            # Templates read the wrapped form. The older form is the function alone.
            function = {_SCHEMA_KEYS.get(key, key): tool[key] for key in tool if key != "type"}
            return {"type": "function", "function": function}
    raise context.error(
        f"{name} holds something that is not a tool",
        expected='{"type": "function", "function": {"name": …, "parameters": {…}}}',
        found=excerpt(repr(tool)),
    )
