"""What families' templates write is learned as the model has to generate it, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from support.familytokenizers import FAMILY_TOKENIZERS, family_tokenizer
from support.talks import (
    ARGUMENTS,
    CALL,
    CALLS,
    INLINE,
    PLAIN,
    TEXT_AND_CALLS,
    THOUGHTS,
    TOOL,
    conversation,
    learned,
    text_of,
    turn,
)
from vlsi_cache.data import BatchEncoder
from vlsi_cache.errors import DataError

# Made by hand. Mistral's words begin with the spaces of its vocabulary.
_PLAIN = {
    "qwen3": ["It is red.<|im_end|>", "<think>\n\n</think>\n\n4 blue<|im_end|>"],
    "qwen3-thinking": ["It is red.<|im_end|>", "\n</think>\n\n4 blue<|im_end|>"],
    "qwq": ["It is red.<|im_end|>", "4 blue<|im_end|>"],
    "chatml-without-stop": ["It is red.", "4 blue"],
    "smollm3": ["It is red.<|im_end|>", "4 blue<|im_end|>"],
    "r1-distill": ["It is red.<｜end▁of▁sentence｜>", "4 blue<｜end▁of▁sentence｜>"],
    "glm4.5": ["\n<think></think>\nIt is red.<|user|>", "\n<think></think>\n4 blue"],
    "command-r7b": [
        f"<|START_RESPONSE|>{answer}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
        for answer in ("It is red.", "4 blue")
    ],
    "granite3": ["It is red.<|end_of_text|>", "4 blue<|end_of_text|>"],
    "llama3.1": ["It is red.<|eot_id|>", "4 blue<|eot_id|>"],
    "mistral": ["  It is red.</s>", "  4 blue</s>"],
    "gpt-oss": [
        "<|channel|>final<|message|>It is red.<|end|>",
        "<|channel|>final<|message|>4 blue<|return|>",
    ],
    "nemotron": ["</think>It is red.\n<SPECIAL_12>", "</think>4 blue\n<SPECIAL_12>"],
    "phi4": ["It is red.<|end|>", "4 blue<|end|>"],
    "gemma2": ["It is red.<end_of_turn>", "4 blue<end_of_turn>"],
}


def test_every_family_is_covered() -> None:
    assert tuple(_PLAIN) == FAMILY_TOKENIZERS


@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
def test_answers_are_learned_up_to_their_stop(kind: str) -> None:
    assert learned(kind, PLAIN) == _PLAIN[kind]


@pytest.mark.parametrize("kind", ["chatml-without-stop", "glm4.5"])
def test_an_answer_without_a_stop_is_warned_about_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = BatchEncoder(family_tokenizer(kind), max_length=None)
    encoder([PLAIN, PLAIN])
    encoder([PLAIN])
    (warning,) = [record for record in caplog.records if "no stop is learned" in record.message]
    assert warning.message.startswith("talk:1 (sample 'sample')")


@pytest.mark.parametrize("kind", sorted({*FAMILY_TOKENIZERS} - {"chatml-without-stop", "glm4.5"}))
def test_families_with_a_stop_warn_of_none(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    BatchEncoder(family_tokenizer(kind), max_length=None)([PLAIN])
    assert "no stop" not in caplog.text


_QWEN_CALL = (
    '<tool_call>\n{"name": "get_hue", "arguments": ' + ARGUMENTS + "}\n</tool_call><|im_end|>"
)
_CALLS = {
    "qwen3": [_QWEN_CALL, "<think>\n\n</think>\n\n4 blue<|im_end|>"],
    "qwen3-thinking": [_QWEN_CALL, "\n</think>\n\n4 blue<|im_end|>"],
    "qwq": [_QWEN_CALL, "4 blue<|im_end|>"],
    "glm4.5": [
        "\n<think></think>\n<tool_call>get_hue\n<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n"
        '<arg_key>where</arg_key>\n<arg_value>a "b"</arg_value>\n</tool_call><|observation|>',
        "\n<think></think>\n4 blue",
    ],
    "command-r7b": [
        '<|START_THINKING|><|END_THINKING|><|START_ACTION|>[    {"tool_call_id": "0", '
        f'"tool_name": "get_hue", "parameters": {ARGUMENTS}}}]<|END_ACTION|><|END_OF_TURN_TOKEN|>',
        "<|START_RESPONSE|>4 blue<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ],
    "llama3.1": [f'{{"name": "get_hue", "parameters": {ARGUMENTS}}}<|eot_id|>', "4 blue<|eot_id|>"],
    "mistral": [
        f'[TOOL_CALLS]  [{{"name": "get_hue", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}]</s>',
        "  4 blue</s>",
    ],
    "gpt-oss": [
        f" to=functions.get_hue<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
        "<|channel|>final<|message|>4 blue<|return|>",
    ],
}


@pytest.mark.parametrize("kind", _CALLS)
def test_calls_are_learned_and_what_the_tools_say_is_not(kind: str) -> None:
    assert learned(kind, CALLS) == _CALLS[kind]
    assert "get_hue" in text_of(family_tokenizer(kind), CALLS).partition("What?")[0] or (
        kind == "mistral"  # its tools stand in the last question, which comes before the call
    )


@pytest.mark.parametrize("kind", _CALLS)
def test_a_conversation_may_end_with_a_call(kind: str) -> None:
    ends = conversation(*CALLS.messages[:2], tools=[TOOL])
    (call,) = learned(kind, ends)
    expected = _CALLS[kind][0].removesuffix("<|observation|>")
    assert call.endswith(expected)


@pytest.mark.parametrize("kind", ["granite3", "smollm3", "phi4", "gemma2", "nemotron"])
def test_calls_that_a_template_does_not_write_are_refused(kind: str) -> None:
    bare = conversation(*CALLS.messages[:2])
    with pytest.raises(DataError, match=r"talk:1 .*drops a call of a tool \(tool_calls\)"):
        learned(kind, bare)


@pytest.mark.parametrize("kind", ["smollm3", "phi4", "gemma2", "r1-distill"])
def test_tools_that_a_template_does_not_write_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"talk:1 .*drops the tools. Take them out of"):
        learned(kind, conversation(*PLAIN.messages, tools=[TOOL]))


def test_arguments_are_given_as_the_template_wants_them() -> None:
    # R1-Distill adds strings up, and wants None as content of a turn that only calls.
    bare = conversation(*CALLS.messages[:2])
    (call,) = learned("r1-distill", bare)
    assert call == (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_hue\n```json\n"
        + ARGUMENTS
        + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    )


@pytest.mark.parametrize("kind", ["qwen3", "glm4.5", "command-r7b", "gpt-oss"])
def test_a_text_beside_calls_is_learned(kind: str) -> None:
    first, _ = learned(kind, TEXT_AND_CALLS)
    assert "Wait." in first
    assert "get_hue" in first


@pytest.mark.parametrize("kind", ["llama3.1", "mistral"])
def test_a_text_that_a_template_drops_beside_calls_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"talk:1 .*drops an answer's text beside tool_calls"):
        learned(kind, TEXT_AND_CALLS)


@pytest.mark.parametrize("call", [{"type": "function"}, {"function": {"name": " "}}, "get_hue"])
def test_a_call_without_a_name_is_refused(call: Any) -> None:
    sample = conversation(turn("user", "What?"), turn("assistant", "red", tool_calls=[call]))
    with pytest.raises(DataError, match=r"talk:1 .*a call of a tool names no function"):
        learned("qwen3", sample)


def test_only_some_of_several_calls_are_not_enough() -> None:
    twice = conversation(
        turn("user", "What?"), turn("assistant", tool_calls=[CALL, CALL]), tools=[TOOL]
    )
    with pytest.raises(DataError, match="drops a call of a tool"):
        learned("gpt-oss", twice)
    (both,) = learned("qwen3", twice)
    assert both.count("</tool_call>") == 2


_THOUGHTS = {
    "qwen3": ["red<|im_end|>", "<think>\nSo.\n</think>\n\n4 blue<|im_end|>"],
    "qwen3-thinking": ["red<|im_end|>", "So.\n</think>\n\n4 blue<|im_end|>"],
    "glm4.5": ["\n<think></think>\nred<|user|>", "\n<think>So.</think>\n4 blue"],
    "gpt-oss": [
        "<|channel|>final<|message|>red<|end|>",
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant"
        "<|channel|>final<|message|>4 blue<|return|>",
    ],
}
_INLINE = {
    **{kind: _THOUGHTS[kind] for kind in ("qwen3", "qwen3-thinking", "glm4.5")},
    "qwq": ["red<|im_end|>", "So.\n</think>\n\n4 blue<|im_end|>"],
    "nemotron": ["Hm.\n</think>\n\nred\n<SPECIAL_12>", "So.\n</think>\n\n4 blue\n<SPECIAL_12>"],
}


@pytest.mark.parametrize("kind", _THOUGHTS)
def test_a_thought_is_learned_where_the_template_writes_it(kind: str) -> None:
    assert learned(kind, THOUGHTS) == _THOUGHTS[kind]


@pytest.mark.parametrize("kind", _INLINE)
def test_a_thought_inside_an_answer_is_learned_after_what_opens_it(kind: str) -> None:
    assert learned(kind, INLINE) == _INLINE[kind]


@pytest.mark.parametrize("kind", sorted({*FAMILY_TOKENIZERS} - {*_THOUGHTS}))
def test_a_thought_that_a_template_drops_from_the_last_answer_is_refused(kind: str) -> None:
    with pytest.raises(
        DataError, match=r"talk:1 .*drops the thought of the last answer \(reasoning_content\)"
    ):
        learned(kind, THOUGHTS)


def test_a_template_that_cuts_the_last_thought_too_says_just_that() -> None:
    with pytest.raises(DataError, match=r"drops the thought of the last answer; found <think> So"):
        learned("r1-distill", INLINE)
    earlier = conversation(*INLINE.messages[:3], turn("assistant", "4 blue"))
    assert learned("r1-distill", earlier) == [
        "\n\nred<｜end▁of▁sentence｜>",
        "4 blue<｜end▁of▁sentence｜>",
    ]


def test_an_earlier_thought_that_no_answer_keeps_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    earlier = conversation(*THOUGHTS.messages[:3], turn("assistant", "4 blue"))
    assert learned("phi4", earlier) == ["red<|end|>", "4 blue<|end|>"]
    assert "does not read reasoning_content" in caplog.text


def test_thoughts_between_calls_are_kept_as_the_template_keeps_them() -> None:
    agent = conversation(
        turn("user", "What?"),
        turn("assistant", tool_calls=[CALL], reasoning_content="Hm."),
        turn("tool", "red"),
        turn("assistant", "4 blue", reasoning_content="So."),
        tools=[TOOL],
    )
    assert learned("qwen3", agent) == [
        "<think>\nHm.\n</think>\n\n" + _QWEN_CALL,
        "<think>\nSo.\n</think>\n\n4 blue<|im_end|>",
    ]
    # A later question takes the thoughts away, and with them the history that these answers had.
    longer = conversation(*agent.messages, *THOUGHTS.messages[2:], tools=[TOOL])
    assert learned("qwen3", longer) == [
        _QWEN_CALL,
        "4 blue<|im_end|>",
        "<think>\nSo.\n</think>\n\n4 blue<|im_end|>",
    ]


def test_an_empty_thought_is_learned_unless_the_generation_prompt_writes_it() -> None:
    asked = PLAIN.messages[2:]
    assert learned("qwen3", conversation(*asked)) == ["<think>\n\n</think>\n\n4 blue<|im_end|>"]
    silent = conversation(*asked, enable_thinking=False)
    assert learned("qwen3", silent) == ["4 blue<|im_end|>"]
    assert learned("glm4.5", silent) == ["\n4 blue"]
    assert learned("nemotron", silent) == ["4 blue\n<SPECIAL_12>"]
    # Of Nemotron's prompt, <think> and a line break, the answer has the first.
    assert learned("nemotron", conversation(*asked)) == ["</think>4 blue\n<SPECIAL_12>"]


def test_an_answer_without_the_thought_that_the_prompt_opens_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learned("qwq", PLAIN)
    assert "the generation prompt opens with '<think>', and answers do not" in caplog.text
    caplog.clear()
    learned("qwq", INLINE)
    assert "generation prompt" not in caplog.text


@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
def test_a_turn_that_is_not_learned_is_given(kind: str) -> None:
    first, *rest = PLAIN.messages
    half = conversation(
        first, turn("assistant", "It is red.", learned=False), *rest[1:], turn("user", "And?")
    )
    stop = "<|user|>" if kind == "glm4.5" else ""
    assert learned(kind, half) == [_PLAIN[kind][1] + stop]
    assert "It is red." in text_of(family_tokenizer(kind), half).replace("  ", " ")


@pytest.mark.parametrize("kind", ["qwen3", "smollm3", "mistral"])
def test_a_sample_of_which_nothing_is_learned_is_refused(kind: str) -> None:
    silent = conversation(turn("user", "What?"), turn("assistant", "red", learned=False))
    with pytest.raises(DataError, match=r"talk:1 \(sample 'sample'\): no token .* is learned"):
        learned(kind, silent)
