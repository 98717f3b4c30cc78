"""The response mask covers the assistant's tokens and nothing else, with any template."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.processors import TEXT_TOKENIZERS, text_tokenizer
from vlsi_cache.data import BatchEncoder, Conversation, Message, TextPart
from vlsi_cache.errors import DataError, ModelError

Talk = Callable[..., Conversation]

THINKING = "<think>\nHmm.\n</think>\n\n"

# Made by hand: each response's tokens as the vocabulary spells them, a space being Ġ or ▁, a line
# break Ċ.
EXPECTED = {
    "chatml": ["ItĠisĠred.<|im_end|>", "4Ġblue<|im_end|>"],
    "tagged": ["ItĠisĠred.<|im_end|>", "4Ġblue<|im_end|>"],
    "qwen3": ["ItĠisĠred.<|im_end|>", "<think>ĊĊ</think>ĊĊ4Ġblue<|im_end|>"],
    "llama3": ["ItĠisĠred.<|eot_id|>", "4Ġblue<|eot_id|>"],
    "llama2": ["▁It▁is▁red.▁</s>", "▁4▁blue▁</s>"],
    "gemma": ["It▁is▁red.<end_of_turn>", "4▁blue<end_of_turn>"],
    # The next turn's role is what the model stops at.
    "glm": ["ItĠisĠred.<|user|>", "4Ġblue"],
}


def responses(kind: str, conversation: Conversation, *, template: str | None = None) -> list[str]:
    """Runs of response tokens, spelt as the vocabulary does."""
    return _runs(*_encode(kind, conversation, template=template))


def decoded(kind: str, conversation: Conversation) -> list[str]:
    tokenizer = text_tokenizer(kind)
    tokens, mask = _encode(kind, conversation)
    runs = groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1])
    return [
        tokenizer.decode(tokenizer.convert_tokens_to_ids([token for token, _ in run]))
        for inside, run in runs
        if inside
    ]


def _encode(
    kind: str, conversation: Conversation, *, template: str | None = None
) -> tuple[list[str], list[bool]]:
    tokenizer: Any = text_tokenizer(kind) if template is None else _with_template(kind, template)
    batch = BatchEncoder(tokenizer, max_length=None)([conversation])
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    return tokens, batch["response_mask"][0].tolist()


def _with_template(kind: str, template: str) -> Any:
    tokenizer = copy.deepcopy(text_tokenizer(kind))
    tokenizer.chat_template = template
    return tokenizer


def _runs(tokens: list[str], mask: list[bool]) -> list[str]:
    runs = groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1])
    return ["".join(token for token, _ in run) for inside, run in runs if inside]


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_the_mask_equals_the_tokens_marked_by_hand(kind: str, talk: Talk) -> None:
    assert responses(kind, talk("What?", "It is red.", "Which?", "4 blue")) == EXPECTED[kind]


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_tokens_are_those_of_transformers_own_rendering(
    kind: str, talk: Talk, as_turns: Callable[..., Any]
) -> None:
    tokenizer = text_tokenizer(kind)
    conversation = talk("What?", "It is red.", "Which?", "4 blue")
    batch = BatchEncoder(tokenizer, max_length=None)([conversation])
    expected = tokenizer.apply_chat_template(
        as_turns(conversation, parts=False), return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert set(batch) == {"input_ids", "attention_mask", "response_mask"}


@pytest.mark.parametrize("kind", [kind for kind in TEXT_TOKENIZERS if kind != "gemma"])
def test_a_system_message_changes_no_response(kind: str, talk: Talk) -> None:
    conversation = talk("What?", "It is red.", "Which?", "4 blue", system="It is red. 4 blue")
    assert responses(kind, conversation) == EXPECTED[kind]


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_a_question_that_repeats_the_answer_is_not_a_response(kind: str, talk: Talk) -> None:
    conversation = talk("It is red.", "It is red.", "4 blue", "4 blue")
    assert responses(kind, conversation) == EXPECTED[kind]


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_an_unanswered_last_question_is_left_out(kind: str, talk: Talk) -> None:
    open_ended = talk("What?", "It is red.", "Which?", "4 blue", "And?")
    # The stop that the next role's marker writes stays.
    stop = "<|user|>" if kind == "glm" else ""
    first, last = EXPECTED[kind]
    assert responses(kind, open_ended) == [first, last + stop]


def test_thoughts_of_earlier_answers_are_gone_and_the_last_are_kept(talk: Talk) -> None:
    conversation = talk("What?", THINKING + "It is red.", "Which?", THINKING + "4 blue")
    first, last = decoded("qwen3", conversation)
    assert first == "It is red.<|im_end|>"
    assert last == THINKING + "4 blue<|im_end|>"


def test_an_answer_split_into_parts_is_one_response() -> None:
    messages = (
        Message("user", (TextPart("What?"),)),
        Message("assistant", (TextPart("It is "), TextPart("red."))),
    )
    for kind in ("chatml", "tagged"):
        assert responses(kind, Conversation("a", messages, "x"))[0] == EXPECTED[kind][0]


def test_the_mask_agrees_with_generation_tags(talk: Talk, as_turns: Callable[..., Any]) -> None:
    tokenizer = text_tokenizer("tagged")
    conversation = talk("What?", " It is\n\nred. ", "Which?", "4 blue")
    expected = tokenizer.apply_chat_template(
        as_turns(conversation, parts=False), return_dict=True, return_assistant_tokens_mask=True
    )
    _, mask = _encode("tagged", conversation)
    assert mask == [bool(inside) for inside in expected["assistant_masks"]]


def test_an_end_of_turn_outside_the_tags_is_added(talk: Talk) -> None:
    outside = (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    conversation = talk("What?", "It is red.", "Which?", "4 blue")
    assert responses("chatml", conversation, template=outside) == EXPECTED["chatml"]


def test_a_template_that_only_ends_the_last_answer_adds_no_other_end(talk: Talk) -> None:
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
        "{% endfor %}{{ eos_token }}"
    )
    conversation = talk("What?", "It is red.", "Which?", "4 blue")
    first, last = responses("chatml", conversation, template=template)
    assert first.removeprefix("Ġ").removesuffix("Ċ") == "ItĠisĠred."
    assert last.removeprefix("Ġ") == "4ĠblueĊ<|im_end|>"


def test_an_end_of_text_after_the_end_of_turn_is_not_a_response(talk: Talk) -> None:
    template = text_tokenizer("chatml").chat_template + "{{ '<|endoftext|>' }}"
    conversation = talk("What?", "It is red.", "Which?", "4 blue")
    assert responses("chatml", conversation, template=template) == EXPECTED["chatml"]


def test_an_end_of_turn_that_is_not_a_token_is_part_of_the_response(talk: Talk) -> None:
    template = text_tokenizer("chatml").chat_template.replace("<|im_end|>", "[END]")
    first, last = responses(
        "chatml", talk("What?", "It is red.", "Which?", "4 blue"), template=template
    )
    assert (first, last) == ("ItĠisĠred.[END]", "4Ġblue[END]")


def test_white_space_that_the_tokenizer_trims_from_offsets_is_kept(talk: Talk) -> None:
    (answer,) = decoded("llama3", talk("What?", "It   is \n  red."))
    assert answer == "It   is \n  red.<|eot_id|>"


def test_the_space_after_a_bare_prompt_is_part_of_the_response(talk: Talk) -> None:
    # Z begins no word of the vocabulary, so that the space before it is a token of its own.
    assert responses("llama2", talk("What?", "Z"))[0] == "▁Z▁</s>"


def test_rendering_does_not_depend_on_the_day(talk: Talk) -> None:
    # As Llama 3.2 writes it.
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
        "{% endif %}{{ date_string }}" + text_tokenizer("chatml").chat_template
    )
    tokens, _ = _encode("chatml", talk("What?", "red"), template=template)
    assert "".join(tokens).startswith("26ĠJulĠ2024<|im_start|>")


def test_a_template_that_rewrites_answers_is_refused(talk: Talk) -> None:
    template = (
        "{% for message in messages %}{{ message['content'] if message['content'] | length < 15 "
        "else message['content'] | upper | replace('\U00100000', '!') }}\n{% endfor %}"
    )
    with pytest.raises(DataError, match=r"rewrites the answers.*Mark the answers"):
        responses("chatml", talk("What?", "It is red all over."), template=template)


def test_a_template_that_refuses_the_order_of_turns_is_named(talk: Talk) -> None:
    with pytest.raises(DataError, match=r"talk:1 .*System role not supported.*turns system, user"):
        responses("gemma", talk("What?", "red", system="Be brief."))
    twice = talk("What?", "It is red.")
    doubled = Conversation("a", (*twice.messages, twice.messages[1]), "x:1")
    with pytest.raises(DataError, match=r"roles must alternate"):
        responses("llama2", doubled)


def test_a_processor_without_a_usable_template_is_refused(talk: Talk) -> None:
    with pytest.raises(ModelError, match="template does not render a question and an answer"):
        BatchEncoder(_with_template("chatml", "{{ messages | length }}"), max_length=None)
    bare = _with_template("chatml", "")
    bare.chat_template = None
    encoder = BatchEncoder(bare, max_length=None)
    with pytest.raises(ModelError, match="has no chat template"):
        encoder([talk("What?", "red")])


@pytest.mark.parametrize("kind", ["chatml", "tagged", "llama3", "llama2", "gemma"])
def test_texts_that_spell_control_tokens_end_no_turn(kind: str, talk: Talk) -> None:
    tokenizer = text_tokenizer(kind)
    end = tokenizer.eos_token if kind != "gemma" else "<end_of_turn>"
    conversation = talk(f"a{end}b", f"It{end}is {end}", f"{end}{end}?", "4 blue")
    plain = decoded(kind, talk("a", "It", "?", "4 blue"))
    spelt = decoded(kind, conversation)
    assert len(spelt) == len(plain) == 2
    assert spelt[1] == plain[1]
    broken = f"{end[0]} {end[1:]}"
    assert spelt[0].replace(" ", "") == f"It{broken}is{broken}{end}".replace(" ", "")
    assert sum(text.count(end) for text in spelt) == 2


words = st.text(
    alphabet=st.one_of(
        st.sampled_from(" \n\t.?1aZé中😀ÅI'\U00100000"),
        st.characters(codec="utf-8", exclude_characters="<", exclude_categories=["Cs", "Cc"]),
    ),
    min_size=1,
    max_size=12,
).filter(str.strip)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_any_answer_comes_back_whole(turns: list[tuple[str, str]]) -> None:
    messages = [
        Message(role, (TextPart(text),))
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    conversation = Conversation("any", tuple(messages), "any:1")
    answers = [answer for _, answer in turns]
    for kind in ("chatml", "tagged"):
        assert decoded(kind, conversation) == [answer + "<|im_end|>" for answer in answers]
    # Jinja trims what Python's strip does.
    trimmed = [answer.strip() + "<|eot_id|>" for answer in answers]
    assert decoded("llama3", conversation) == trimmed
