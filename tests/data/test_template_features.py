"""Odd features of published templates and tokenizers, and what is learned through them."""

from __future__ import annotations

from typing import Any, Final

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from support.processors import build_tokenizer
from support.talks import INLINE, PLAIN, conversation, learned_with, text_of, turn
from vlsi_cache.errors import DataError, ModelError

_IM: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PROMPT: Final = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_TURN: Final = "<|im_start|>{{ m.role }}\n"


def _tokenizer(
    template: str, tokens: tuple[str, ...] = _IM, end: str = "<|im_end|>", **flags: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer with a template. All its special tokens but the first get the flags."""
    names = {"eos_token": end, "pad_token": tokens[0]}
    kept = tokens[:1] if flags else tokens
    known = {name: token for name, token in names.items() if token in kept}
    tokenizer = build_tokenizer("bytes", kept, known)
    if flags:
        options: dict[str, Any] = {"special": True, "normalized": False, **flags}
        tokenizer.add_tokens([AddedToken(token, **options) for token in tokens[1:]])
        tokenizer.eos_token = end
    tokenizer.chat_template = template
    return tokenizer


_SPACED: Final = conversation(
    turn("user", "What?"), turn("assistant", " red\n\nand so"), turn("user", "?"), *PLAIN.messages
)
_TAGGED: Final = {
    "in a macro": "{% macro turn(m) %}"
    + _TURN
    + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "of each line": "{% macro turn(m) %}"
    + _TURN
    + "{% for line in m.content.split('\n') %}{% if m.role == 'assistant' %}"
    "{%- generation -%} {{ line }}{{ '' if loop.last else '\n' }} {%- endgeneration -%}"
    "{% else %}{{ line }}{% endif %}{% endfor %}<|im_end|>{{ '\n' }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "on lines of their own": "{% for m in messages %}\n"
    + _TURN
    + "{% if m.role == 'assistant' %}\n   {% generation %}\n{{ m.content }}<|im_end|>\n"
    "   {% endgeneration %}\n{% else %}\n{{ m.content }}<|im_end|>\n{% endif %}\n{% endfor %}\n",
}


@pytest.mark.parametrize("kind", _TAGGED)
def test_tags_are_found_wherever_the_template_writes_them(kind: str) -> None:
    tokenizer = _tokenizer(_TAGGED[kind] + _PROMPT)
    answers = [message.text for message in _SPACED.messages if message.role == "assistant"]
    found = learned_with(tokenizer, _SPACED)
    assert found == [answer + "<|im_end|>" for answer in answers]


def test_a_prompt_that_closes_the_question_hides_no_stop() -> None:
    # Qwen 1.5: the last turn is not closed, and the generation prompt closes it.
    tokenizer = _tokenizer(
        "{% for m in messages %}"
        "{% if loop.first %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        + _TURN
        + "{{ m.content }}"
        "{% if (loop.last and add_generation_prompt) or not loop.last %}<|im_end|>\n{% endif %}"
        "{% endfor %}" + _PROMPT
    )
    more = conversation(*PLAIN.messages, turn("user", "And?"))
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|im_end|>", "4 blue"]
    assert learned_with(tokenizer, more) == ["It is red.<|im_end|>", "4 blue<|im_end|>"]


def test_the_header_of_an_answer_after_an_answer_is_given() -> None:
    # OLMo 2: a line break stands between two turns, and none before the generation prompt.
    tokenizer = _tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|endoftext|>",),
        "<|endoftext|>",
    )
    twice = conversation(*PLAIN.messages[:2], turn("assistant", "Or blue."))
    found = learned_with(tokenizer, twice)
    assert found == ["It is red.<|endoftext|>", "Or blue.<|endoftext|>"]


def test_a_thought_is_split_off_though_its_token_stands_in_the_header() -> None:
    # DeepSeek V3.1: answers without a thought begin after </think>.
    tokenizer = _tokenizer(
        "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}"
        "{% endif %}<|im_start|></think>{{ content }}<|im_end|>"
        "{% else %}<|im_start|>{{ content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|></think>{% endif %}",
        (*_IM, "<think>", "</think>"),
    )
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|im_end|>", "4 blue<|im_end|>"]
    with pytest.raises(DataError, match="drops the thought of the last answer"):
        learned_with(tokenizer, INLINE)


_PHI3: Final = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
_PHI3_TOKENS: Final = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")


def test_a_header_that_takes_the_white_space_after_it_is_not_learned() -> None:
    tokenizer = _tokenizer(_PHI3, _PHI3_TOKENS, "<|endoftext|>", rstrip=True)
    sample = conversation(turn("user", "What?"), turn("assistant", "  red"))
    assert learned_with(tokenizer, sample) == ["red<|end|>"]


def test_an_end_of_turn_that_is_not_called_special_is_a_stop_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = _tokenizer(_PHI3, _PHI3_TOKENS, "<|endoftext|>", special=False)
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|end|>", "4 blue<|end|>"]
    assert "no stop" not in caplog.text
    spelt = conversation(turn("user", "a<|end|>b"), turn("assistant", "c<|end|>d"))
    assert text_of(tokenizer, spelt).count("<|end|>") == 2
    assert learned_with(tokenizer, spelt) == ["c< |end|>d<|end|>"]


def test_a_template_that_changes_the_words_is_refused_at_once() -> None:
    tokenizer = _tokenizer("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(ModelError, match=r"does not render .*; found a text without them\."):
        learned_with(tokenizer, PLAIN)


def test_what_closes_a_question_is_not_learned_though_the_prompt_leaves_it_out() -> None:
    tokenizer = _tokenizer(
        "{% for m in messages %}" + _TURN + "{{ m.content }}"
        "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}" + _PROMPT
    )
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|im_end|>", "4 blue"]


def test_a_question_that_is_repeated_in_an_answer_is_refused() -> None:
    tokenizer = _tokenizer(
        "{% for m in messages %}" + _TURN + "{% if m.role == 'assistant' %}"
        "{{ 'You ask: ' + messages[loop.index0 - 1].content + ' ' }}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
    )
    with pytest.raises(DataError, match="writes what the user says into an answer"):
        learned_with(tokenizer, PLAIN)


_OPENED: Final = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn must open') }}"
    "{% endif %}{% for m in messages %}" + _TURN + "{{ m.content }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("prompt", [_PROMPT, ""])
def test_a_template_that_wants_a_system_turn_reads_conversations_that_have_one(prompt: str) -> None:
    tokenizer = _tokenizer(_OPENED + prompt)
    opened = conversation(
        turn("system", "Be brief."), turn("user", "What?"), turn("assistant", "A")
    )
    usual = _tokenizer(_OPENED.partition("{% endif %}")[2] + prompt)
    assert learned_with(tokenizer, opened) == learned_with(usual, opened)
    with pytest.raises(DataError, match=r"refuses the conversation \(a system turn must open\)"):
        learned_with(tokenizer, PLAIN)


_LLAMA: Final = ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def test_a_header_that_follows_every_turn_is_not_learned_with_the_stop() -> None:
    # Llama 3 as it came out: the generation prompt is written without being asked for.
    tokenizer = _tokenizer(
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        _LLAMA,
        "<|end_of_text|>",
    )
    assert learned_with(tokenizer, PLAIN) == ["It is red.<|eot_id|>", "4 blue<|eot_id|>"]


@pytest.mark.parametrize(
    "answer",
    [
        _TURN + "{{ m.content }}<|im_end|>\n",
        "{% generation %}" + _TURN + "{{ m.content }}<|im_end|>{% endgeneration %}\n",
    ],
)
def test_a_header_that_the_model_must_write_itself_is_learned_and_named_once(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = _tokenizer(
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + answer
        + "{% else %}"
        + _TURN
        + "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    header = "<|im_start|>assistant\n"
    found = learned_with(tokenizer, PLAIN)
    assert [text.strip() for text in found] == [
        header + "It is red.<|im_end|>",
        header + "4 blue<|im_end|>",
    ]
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "writes no generation prompt" in said
    assert "'<|im_start|>assistant'" in said


def test_a_greeting_has_the_header_that_only_a_turn_before_it_would_prompt() -> None:
    """Zephyr's template writes its generation prompt inside of the loop over the turns."""
    template = (
        "{% for m in messages %}\n<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n<|assistant|>\n{% endif %}\n{% endfor %}"
    )
    tokenizer = _tokenizer(template, ("<pad>", "</s>"), "</s>")
    talk = conversation(turn("assistant", "Hello."), *PLAIN.messages)
    assert learned_with(tokenizer, talk) == ["Hello.</s>", "It is red.</s>", "4 blue</s>"]
