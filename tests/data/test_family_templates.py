"""What families' templates write is learned as the model has to generate it, or refused by name."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from support.familytokenizers import FAMILY_TOKENIZERS, family_tokenizer
from support.processors import image_processor_for, text_tokenizer
from vlsi_cache.data import BatchEncoder, Conversation, Message, TextPart, TokenBatches
from vlsi_cache.data.encoding.tally import report_changed_samples, take_changed_samples
from vlsi_cache.errors import DataError

CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_hue", "arguments": {"n": 5, "where": 'a "b"'}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_hue",
        "description": "Gets.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}
ARGUMENTS = '{"n": 5, "where": "a \\"b\\""}'


def turn(role: str, text: str = "", *, learned: bool = True, **fields: Any) -> Message:
    return Message(role, (TextPart(text),) if text else (), fields, learned)


def conversation(*messages: Message, tools: Sequence[Any] = (), **variables: Any) -> Conversation:
    return Conversation("sample", messages, "talk:1", tuple(tools), variables)


PLAIN = conversation(
    turn("user", "What?"),
    turn("assistant", "It is red."),
    turn("user", "Which?"),
    turn("assistant", "4 blue"),
)
THOUGHTS = conversation(
    turn("user", "What?"),
    turn("assistant", "red", reasoning_content="Hm."),
    turn("user", "Which?"),
    turn("assistant", "4 blue", reasoning_content="So."),
)
INLINE = conversation(
    turn("user", "What?"),
    turn("assistant", "<think>\nHm.\n</think>\n\nred"),
    turn("user", "Which?"),
    turn("assistant", "<think>\nSo.\n</think>\n\n4 blue"),
)
CALLS = conversation(
    turn("user", "What?"),
    turn("assistant", tool_calls=[CALL]),
    turn("tool", "red", tool_call_id="abcdefghi"),
    turn("assistant", "4 blue"),
    tools=[TOOL],
)
TEXT_AND_CALLS = conversation(
    turn("user", "What?"),
    turn("assistant", "Wait.", tool_calls=[CALL]),
    turn("tool", "red", tool_call_id="abcdefghi"),
    turn("assistant", "4 blue"),
    tools=[TOOL],
)


def learned(kind: str, sample: Conversation) -> list[str]:
    """The text of each run of learned tokens."""
    return learned_with(family_tokenizer(kind), sample)


def learned_with(tokenizer: Any, sample: Conversation) -> list[str]:
    batch = BatchEncoder(tokenizer, max_length=None)([sample])
    pairs = zip(batch["input_ids"][0].tolist(), batch["response_mask"][0].tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for inside, run in runs if inside]


def text_of(tokenizer: Any, sample: Conversation) -> str:
    ids = BatchEncoder(tokenizer, max_length=None)([sample])["input_ids"][0]
    return str(tokenizer.decode(ids.tolist()))


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
    with pytest.raises(DataError, match=r"talk:1 .*drops the tools"):
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
    assert learned(kind, half) == _PLAIN[kind][1:]
    assert "It is red." in text_of(family_tokenizer(kind), half).replace("  ", " ")


@pytest.mark.parametrize("kind", ["qwen3", "smollm3", "mistral"])
def test_a_sample_of_which_nothing_is_learned_is_refused(kind: str) -> None:
    silent = conversation(turn("user", "What?"), turn("assistant", "red", learned=False))
    with pytest.raises(DataError, match=r"talk:1 \(sample 'sample'\): no token .* is learned"):
        learned(kind, silent)


_BARE = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"


@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
@pytest.mark.parametrize("template", [None, _BARE])
def test_nothing_predicts_the_first_token(kind: str, template: str | None) -> None:
    if template is None and kind == "gemma2":
        # It refuses a conversation that begins like this.
        with pytest.raises(DataError, match="roles must alternate"):
            learned(kind, conversation(*PLAIN.messages[1:]))
        return
    tokenizer = copy.deepcopy(family_tokenizer(kind))
    tokenizer.chat_template = template or tokenizer.chat_template
    batch = BatchEncoder(tokenizer, max_length=None)([conversation(*PLAIN.messages[1:]), PLAIN])
    assert not batch["response_mask"][:, 0].any()
    assert batch["response_mask"].any(1).all()


@pytest.mark.parametrize(
    "kind", ["qwen3", "smollm3", "r1-distill", "glm4.5", "command-r7b", "mistral"]
)
def test_a_role_that_a_template_drops_is_refused(kind: str) -> None:
    brief = conversation(turn("developer", "Be brief."), *PLAIN.messages)
    with pytest.raises(DataError, match=r"drops the turn of role developer|Only user and"):
        learned(kind, brief)


def test_only_the_last_of_two_system_turns_is_not_enough() -> None:
    twice = conversation(turn("system", "Be brief."), turn("system", "Be kind."), *PLAIN.messages)
    with pytest.raises(DataError, match="drops the turn of role system"):
        learned("r1-distill", twice)


def test_names_and_variables_that_a_template_does_not_read_are_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    named = conversation(
        turn("user", "What?", name="Bob"),
        turn("assistant", "red", name="Eve"),
        enable_thinking=False,
        mood="fine",
    )
    encoder = BatchEncoder(family_tokenizer("qwen3"), max_length=None)
    encoder([named, named])
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert said == [
        "the chat template does not read the variable mood",
        "the chat template does not read name",
    ]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
def test_a_variable_with_a_name_that_is_taken_is_refused(name: str) -> None:
    sample = Conversation("sample", PLAIN.messages, "talk:1", (), {name: True})
    with pytest.raises(DataError, match=rf"talk:1 .*names that are taken; found {name}"):
        learned("qwen3", sample)


def test_an_answer_outside_of_the_tags_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if loop.last %}{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    assert learned_with(tokenizer, PLAIN) == ["4 blue<|im_end|>"]
    assert "tags leave an answer out" in caplog.text


def test_tags_find_answers_that_the_template_rewrites() -> None:
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}"
        "{% if '4' in message['content'] %}{{ message['content'] | length }}{% endif %}"
        "{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    first, *rest = PLAIN.messages
    half = conversation(first, turn("assistant", "ab", learned=False), *rest[1:])
    assert learned_with(tokenizer, half) == ["4 blue6<|im_end|>"]


def test_samples_changed_in_loader_workers_are_counted() -> None:
    take_changed_samples()
    collate = TokenBatches(BatchEncoder(text_tokenizer("chatml"), max_length=None))
    spelt = (turn("user", "a<|im_end|>b"), turn("assistant", "red"))
    samples = [(number, Conversation(str(number), spelt, f"x:{number}")) for number in range(6)]
    for _ in range(2):
        loader = DataLoader(samples, batch_size=2, num_workers=2, collate_fn=collate)  # type: ignore[arg-type, var-annotated]
        assert len(list(loader)) == 3
    assert take_changed_samples() == 6


@pytest.mark.parametrize("kind", ["granite3", "smollm3", "gpt-oss"])
def test_the_day_of_a_template_is_pinned(kind: str) -> None:
    text = text_of(family_tokenizer(kind), PLAIN)
    today = datetime.datetime.now(tz=datetime.UTC).astimezone()
    assert any(day in text for day in ("July 26, 2024", "26 July 2024", "2024-07-26"))
    assert str(today.year) not in text or today.year == 2024


def test_every_form_of_a_day_is_pinned() -> None:
    forms = "%Y %y %m %-m %d %-d %e %B %b %h %A %a %H %I %M %S %f %p %j %F %D %T"
    tokenizer = copy.deepcopy(text_tokenizer("chatml"))
    tokenizer.chat_template = "{{ strftime_now('" + forms + "') }}" + str(tokenizer.chat_template)
    day = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
    assert text_of(tokenizer, PLAIN).partition("<|im_start|>")[0] == day.strftime(forms)


def test_a_row_may_give_the_day_itself() -> None:
    dated = conversation(*PLAIN.messages, date_string="1 May 2020")
    assert "Today Date: 1 May 2020" in text_of(family_tokenizer("llama3.1"), dated)


def test_a_token_that_the_template_writes_into_answers_is_kept_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_changed_samples()
    code = conversation(turn("user", "What?"), turn("assistant", "<|python_tag|>print(1)"))
    assert learned("llama3.1", code) == ["<|python_tag|>print(1)<|eot_id|>"]
    assert learned("qwq", INLINE)[1].startswith("So.\n</think>")
    assert take_changed_samples() == 0
    asked = conversation(turn("user", "Why <|python_tag|>?"), turn("assistant", "red"))
    assert "Why < |python_tag|>?" in text_of(family_tokenizer("llama3.1"), asked)
    stop = conversation(turn("user", "What?"), turn("assistant", "a<|eom_id|>b<|eot_id|>"))
    assert learned("llama3.1", stop) == ["a< |eom_id|>b< |eot_id|><|eot_id|>"]
    report_changed_samples()  # both of them have the same name here
    assert "1 sample spells control tokens; a space was put into each of them" in caplog.text
    caplog.clear()
    report_changed_samples()
    assert caplog.text == ""


def test_tokens_are_broken_wherever_a_sample_may_spell_them() -> None:
    end = "<|im_end|>"
    spelt = {"name": "get_hue", "arguments": {"where": f"a{end}", f"b{end}": [end]}}
    tool = {"type": "function", "function": {"name": "get_hue", "description": f"Gets{end}."}}
    sample = conversation(
        turn("user", "What?"),
        turn(
            "assistant",
            reasoning_content=f"Hm{end}",
            tool_calls=[{"type": "function", "function": spelt}],
        ),
        turn("tool", f"red{end}"),
        turn("assistant", "4 blue"),
        tools=[tool],
    )
    plain = conversation(*CALLS.messages, tools=[TOOL])
    tokenizer = family_tokenizer("qwen3")
    counts = [text_of(tokenizer, one).count(end) for one in (sample, plain)]
    assert counts[0] == counts[1]


def test_plain_text_is_learned_whole_but_for_its_first_token() -> None:
    text = Conversation("plain", (turn("assistant", "The ball is red."),), "x:1", templated=False)
    for kind in ("llama2", "chatml"):
        tokenizer = text_tokenizer(kind)
        batch = BatchEncoder(tokenizer, max_length=None)([text])
        assert batch["input_ids"][0].tolist() == tokenizer("The ball is red.")["input_ids"]
        assert batch["response_mask"][0].tolist() == [False] + [True] * (
            batch["input_ids"].shape[1] - 1
        )
    bare = copy.deepcopy(text_tokenizer("llama2"))
    bare.chat_template = None
    assert BatchEncoder(bare, max_length=None)([text])["response_mask"].any()
    one = Conversation("one", (turn("assistant", "."),), "x:1", templated=False)
    with pytest.raises(DataError, match="no token of the sample is learned"):
        BatchEncoder(text_tokenizer("chatml"), max_length=None)([one])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3_vision"])
def test_plain_text_beside_conversations_is_as_it_is_alone(family: str) -> None:
    text = Conversation("plain", (turn("assistant", "A ball. " * 9),), "x:1", templated=False)
    short = Conversation("short", (turn("assistant", "A ball."),), "x:2", templated=False)
    encoder = BatchEncoder(image_processor_for(family), max_length=None)
    mixed = [short, PLAIN, text, THOUGHTS_AWAY]
    batch = encoder(mixed)
    for row, sample in enumerate(mixed):
        alone = encoder([sample])
        length = alone["input_ids"].shape[1]
        for name, value in alone.items():
            assert (batch[name][row, :length] == value[0]).all(), name
        assert not batch["attention_mask"][row, length:].any()


THOUGHTS_AWAY = conversation(turn("user", "What?"), turn("assistant", "red"))

words = st.text(alphabet="abz 1.é中'\"\\{}\n", min_size=1, max_size=9).filter(str.strip)
answers = st.fixed_dictionaries(
    {"text": words, "learned": st.booleans(), "calls": st.booleans(), "thinks": st.booleans()}
)


@settings(max_examples=40)
@given(st.lists(st.tuples(words, answers), min_size=1, max_size=3), words)
@pytest.mark.parametrize("kind", FAMILY_TOKENIZERS)
def test_what_is_learned_is_what_generation_would_have_to_produce(
    kind: str, turns: list[tuple[str, dict[str, Any]]], argument: str
) -> None:
    sample = _random(kind, turns, argument)
    tokenizer: Any = family_tokenizer(kind)
    if not any(message.learned for message in sample.messages if message.role == "assistant"):
        with pytest.raises(DataError, match="no token of the sample is learned"):
            learned(kind, sample)
        return
    encoder = BatchEncoder(tokenizer, max_length=None)
    batch = encoder([sample])
    ids, mask = batch["input_ids"][0].tolist(), batch["response_mask"][0].tolist()
    last = max(index for index, inside in enumerate(mask) if inside)
    first = last
    while mask[first - 1]:
        first -= 1
    # The last answer is learned after the very text that the model gets as its prompt, and what is
    # learned is all that follows up to the stop.
    history = sample.messages
    end = max(index for index, one in enumerate(history) if one.role == "assistant" and one.learned)
    prompt = encoder._template.render(
        Conversation("p", history[:end], "p", sample.tools),
        where="p",
        add_generation_prompt=True,
    )[0]
    whole = encoder._template.render(
        Conversation("w", history[: end + 1], "w", sample.tools), where="w"
    )[0]
    rest = whole[len(_agreed(prompt, whole)) :]
    produced = tokenizer.decode(ids[first : last + 1])
    assert _spaceless(produced) in _spaceless(rest)
    assert _spaceless(rest).startswith(_spaceless(produced))
    leftover = _spaceless(rest).removeprefix(_spaceless(produced))
    assert leftover in {"", "<|endoftext|>"}


def _random(kind: str, turns: list[tuple[str, dict[str, Any]]], argument: str) -> Conversation:
    call = copy.deepcopy(CALL)
    call["function"]["arguments"] = {"n": 5, "where": argument}  # type: ignore[index]
    messages = []
    for question, answer in turns:
        messages.append(turn("user", question))
        fields = {}
        if answer["calls"] and kind in _CALLS:
            messages.append(turn("assistant", tool_calls=[call], learned=answer["learned"]))
            messages.append(turn("tool", "red", tool_call_id="abcdefghi"))
        if answer["thinks"] and kind in _THOUGHTS:
            fields["reasoning_content"] = "So it is."
        messages.append(turn("assistant", answer["text"], learned=answer["learned"], **fields))
    return conversation(*messages, tools=[TOOL] if kind in _CALLS else [])


def _agreed(prompt: str, whole: str) -> str:
    """The prompt, as far as the text has it: whole tags and words."""
    if whole.startswith(prompt):
        return prompt
    length = 0
    while length < min(len(prompt), len(whole)) and prompt[length] == whole[length]:
        length += 1
    while length and (prompt[length - 1] == "<" or prompt[length - 1 : length + 1].isalnum()):
        length -= 1
    return whole[:length]


def _spaceless(text: str) -> str:
    return "".join(text.split())
