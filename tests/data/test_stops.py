"""The token at which the model stops is learned wherever the answer stands in its conversation."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import pytest
from transformers import PreTrainedTokenizerFast

from support.processors import build_tokenizer
from support.talks import conversation, learned_with, text_of, turn
from vlsi_cache.data import Message

_TURNS: Final = (
    "{%% for m in messages %%}%s{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
)
_TOOL_AS_ANSWER: Final = "{% set role = 'observation' if m.role == 'tool' else m.role %}"

# family: special tokens (the last is the end of text), template, stop before a user, before a tool
_FAMILIES: Final[dict[str, tuple[str, str, str, str]]] = {
    "glm4": (
        "[gMASK] <sop> <|user|> <|assistant|> <|observation|> <|endoftext|>",
        "[gMASK]<sop>"
        + _TURNS % (_TOOL_AS_ANSWER + "<|{{ role }}|>\n{{ m.content }}", "<|assistant|>\n"),
        "<|user|>",
        "<|observation|>",
    ),
    "chatglm": (
        "<|user|> <|assistant|> <|observation|> <|endoftext|>",
        _TURNS
        % (_TOOL_AS_ANSWER + "<|{{ role }}|> \n {{ m.content | trim }} ", "<|assistant|> \n "),
        "<|user|>",
        "<|observation|>",
    ),
    "gemma": (
        "<bos> <start_of_turn> <end_of_turn> <eos>",
        "<bos>"
        + _TURNS
        % (
            "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end_of_turn>\n",
            "<start_of_turn>model\n",
        ),
        "<end_of_turn>",
        "<end_of_turn>",
    ),
    "llama": (
        "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end_of_text|>",
        "<|begin_of_text|>"
        + _TURNS
        % (
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "phi": (
        "<|user|> <|tool|> <|assistant|> <|end|> <|endoftext|>",
        _TURNS % ("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n")
        + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
        "<|end|>",
        "<|end|>",
    ),
    "mistral": (
        "<s> [INST] [/INST] [TOOL_RESULTS] [/TOOL_RESULTS] </s>",
        "<s>"
        + _TURNS
        % (
            "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}"
            "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %}{{ m.content }}</s>{% endif %}",
            "",
        ),
        "</s>",
        "</s>",
    ),
    "chatml": (
        "<|im_start|> <|im_end|> <|endoftext|>",
        _TURNS
        % ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant\n"),
        "<|im_end|>",
        "<|im_end|>",
    ),
    "deepseek": (
        "<|bos|> <|User|> <|Assistant|> <|tool_output|> <|eos|>",
        "<|bos|>"
        + _TURNS
        % (
            "{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'tool' %}"
            "<|tool_output|>{{ m.content }}{% else %}<|Assistant|>{{ m.content }}<|eos|>"
            "{% endif %}",
            "<|Assistant|>",
        ),
        "<|eos|>",
        "<|eos|>",
    ),
    "command-r": (
        "<BOS> <|TURN|> <|USER|> <|CHATBOT|> <|SYSTEM|> <|END_RESPONSE|> <|END_OF_TURN|>",
        "<BOS>"
        + _TURNS
        % (
            "<|TURN|>{{ {'user': '<|USER|>', 'tool': '<|SYSTEM|>'}.get(m.role, '<|CHATBOT|>') }}"
            "{{ m.content }}{{ '<|END_RESPONSE|>' if m.role == 'assistant' }}<|END_OF_TURN|>",
            "<|TURN|><|CHATBOT|>",
        ),
        "<|END_RESPONSE|><|END_OF_TURN|>",
        "<|END_RESPONSE|><|END_OF_TURN|>",
    ),
}


@cache
def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    tokens, template, *_ = _FAMILIES[kind]
    special = tuple(tokens.split())
    names = {"eos_token": special[-1], "pad_token": special[-1]}
    tokenizer = build_tokenizer("bytes", special, names)
    tokenizer.chat_template = template
    return tokenizer


def _learned(kind: str, *messages: Message) -> list[str]:
    answers = learned_with(_tokenizer(kind), conversation(*messages))
    return ["".join(answer.split()) for answer in answers]


_FIRST = (turn("user", "What?"), turn("assistant", "red"))
_SECOND = (turn("user", "Which?"), turn("assistant", "blue"))
_LATER: Final[dict[str, tuple[Message, ...]]] = {
    "nothing": (),
    "a question": (turn("user", "And <|user|> then?"),),
    "a tool": (turn("tool", "sunny"),),
    "a question and a tool": (turn("user", "And?"), turn("tool", "sunny")),
    "an answer that is given": (turn("user", "And?"), turn("assistant", "green", learned=False)),
}


@pytest.mark.parametrize("later", _LATER)
@pytest.mark.parametrize("kind", _FAMILIES)
def test_the_stop_is_learned_whatever_follows(kind: str, later: str, caplog: Any) -> None:
    _, _, before_user, before_tool = _FAMILIES[kind]
    stop = before_tool if later == "a tool" else before_user
    is_marker = before_user != before_tool  # nothing that the template writes at the end stops it
    stop = "" if is_marker and later == "nothing" else stop
    found = _learned(kind, *_FIRST, *_SECOND, *_LATER[later])
    assert found == ["red" + before_user, "blue" + stop]
    assert ("no stop is learned" in caplog.text) == (not stop)


@pytest.mark.parametrize("kind", _FAMILIES)
def test_an_answer_in_the_middle_stops_before_a_tool(kind: str) -> None:
    _, _, before_user, before_tool = _FAMILIES[kind]
    found = _learned(kind, *_FIRST, turn("tool", "sunny"), *_SECOND[1:], turn("user", "And?"))
    assert found == ["red" + before_tool, "blue" + before_user]


@pytest.mark.parametrize("kind", _FAMILIES)
def test_only_the_marker_of_the_next_turn_is_read(kind: str) -> None:
    tokenizer = _tokenizer(kind)
    alone = text_of(tokenizer, conversation(*_FIRST))
    more = text_of(tokenizer, conversation(*_FIRST, turn("user", "Secret")))
    marker = "<|user|>" if kind in ("glm4", "chatglm") else ""
    assert more.replace(" ", "") == (alone + marker).replace(" ", "")
