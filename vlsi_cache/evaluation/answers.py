"""Answers by greedy generation, and their comparison with the recorded ones."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import GenerationConfig

from vlsi_cache.data import BatchEncoder, Conversation
from vlsi_cache.evaluation.intervals import wilson_interval
from vlsi_cache.evaluation.report import AnswerExample, AnswerFigures
from vlsi_cache.models import Backbone, tokenizer_of

__all__ = ["Answer", "Answerer", "answer_examples", "answer_figures", "is_right", "normalised"]

_TOKEN_DIMENSIONS: Final = 2
_EXAMPLES: Final = 5
"""Answers that are shown."""
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_MARKS: Final = str.maketrans("", "", string.punctuation)
_NUMBER: Final = re.compile(r"[-+]?[\d.,]*\d")


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer, and the recorded one."""

    given: str
    """What the model says."""
    recorded: str
    """What the data has."""
    sample_id: str = ""
    """The conversation."""
    question: str = ""
    """The text of the user's turn before it."""


class Answerer:
    """Answers conversations up to their last learned turn, by greedy generation.

    Args:
        model: the model.
        encoder: its encoder, which also says where the answer begins.
        max_new_tokens: longest answer.
    """

    def __init__(self, model: Backbone, encoder: BatchEncoder, max_new_tokens: int) -> None:
        self._model: Any = model.decoder.model
        self._device = model.device
        self._encoder = encoder
        self._tokenizer: Any = tokenizer_of(encoder.processor)
        self.max_new_tokens = max_new_tokens
        self.num_longer = 0
        """Recorded answers so far that are longer than any that is generated."""

    @torch.no_grad()
    def __call__(self, conversations: Sequence[Conversation]) -> list[Answer]:
        """Answer those whose last learned turn has text."""
        asked = [one for one in conversations if one.templated and _recorded(one)]
        prompts, ends = [], set()
        for conversation in asked:
            batch = self._encoder([conversation])
            start, end = _last_run(batch.pop("response_mask")[0])
            ends.add(int(batch["input_ids"][0, end - 1]))
            self.num_longer += end - start > self.max_new_tokens
            prompts.append(_cut(batch, start))
        given = [text for group in _groups(prompts) for text in self._generate(group, ends)]
        return [
            Answer(text, _recorded(conversation), conversation.sample_id, _question(conversation))
            for text, conversation in zip(given, asked, strict=True)
        ]

    def _generate(self, prompts: Sequence[Mapping[str, Tensor]], ends: set[int]) -> list[str]:
        inputs = _padded(prompts, self._tokenizer.pad_token_id)
        length = inputs["input_ids"].shape[1]
        generated = self._model.generate(
            **send_to_device(inputs, self._device),
            generation_config=GenerationConfig(
                do_sample=False,
                # what is not given here would come from the checkpoint
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                min_new_tokens=0,
                min_length=0,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=sorted(self._stops() | self._special(ends)),
            ),
        )
        found: list[str] = self._tokenizer.batch_decode(
            generated[:, length:], skip_special_tokens=True
        )
        return found

    def _stops(self) -> set[int]:
        """Return the tokens at which the checkpoint itself stops."""
        named = self._model.generation_config.eos_token_id
        found = {named} if isinstance(named, int) else set(named or ())
        own = self._tokenizer.eos_token_id
        return found if own is None else found | {own}

    def _special(self, ends: set[int]) -> set[int]:
        """Return the last tokens of the recorded turns that are special: they end a turn."""
        added = self._tokenizer.added_tokens_decoder
        return {end for end in ends if end in added and added[end].special}


def _recorded(conversation: Conversation) -> str:
    learned = [one for one in conversation.messages if one.role == "assistant" and one.learned]
    return learned[-1].text.strip() if learned else ""


def _question(conversation: Conversation) -> str:
    """Return the text of the last user's turn before the last learned one."""
    messages = conversation.messages
    last = max(n for n, one in enumerate(messages) if one.role == "assistant" and one.learned)
    asked = [one.text for one in messages[:last] if one.role == "user"]
    return asked[-1].strip() if asked else ""


def _last_run(mask: Tensor) -> tuple[int, int]:
    """Return where the last run of learned tokens begins and ends."""
    (learned,) = mask.nonzero(as_tuple=True)
    breaks = (learned.diff() > 1).nonzero()
    first = int(breaks[-1]) + 1 if len(breaks) else 0
    return int(learned[first]), int(learned[-1]) + 1


def _cut(batch: Mapping[str, Tensor], start: int) -> dict[str, Tensor]:
    """Return one sample's inputs before a position."""
    length = batch["input_ids"].shape[1]
    return {
        name: value[:, :start] if value.shape[:2] == (1, length) else value
        for name, value in batch.items()
    }


def _groups(prompts: Sequence[dict[str, Tensor]]) -> list[list[dict[str, Tensor]]]:
    """Return neighbours that fit into one batch: alike in all but their lengths."""
    groups: list[list[dict[str, Tensor]]] = []
    for prompt in prompts:
        if groups and _form(prompt) == _form(groups[-1][0]) is not None:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups


def _form(prompt: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of pictures, but for their number; None for what must be alone.

    Every processor lays pictures, or their patches, one after another in the first dimension. What
    has a dimension of tokens beside others is padded in ways of its own.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, value in prompt.items():
        if _is_tokens(prompt, value):
            if value.ndim > _TOKEN_DIMENSIONS:
                return None
            found[name] = ()
        else:
            found[name] = tuple(value.shape[1:])
    return found


def _is_tokens(prompt: Mapping[str, Tensor], value: Tensor) -> bool:
    return value.shape[:2] == prompt["input_ids"].shape


def _padded(prompts: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Join prompts, padded on their left, where generation does not see it."""
    if len(prompts) == 1:
        return dict(prompts[0])
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def joined(name: str) -> Tensor:
        parts = [prompt[name] for prompt in prompts]
        if not _is_tokens(prompts[0], parts[0]):
            return torch.cat(parts)
        value = pad if name == "input_ids" else 0
        return torch.cat([F.pad(part, (longest - part.shape[1], 0), value=value) for part in parts])

    return {name: joined(name) for name in prompts[0]}


def normalised(text: str) -> str:
    """Return a text without case, punctuation, articles and extra spaces (SQuAD, 2016).

    What consists of nothing else, such as the choice "A", keeps the article, or else the marks.
    """
    lower = text.lower()
    unmarked = lower.translate(_MARKS)
    kept = (_ARTICLES.sub(" ", unmarked), unmarked, lower)
    return next((" ".join(one.split()) for one in kept if one.strip()), "")


def is_right(answer: Answer) -> bool:
    """Report whether an answer equals the recorded one. Numbers are compared as numbers."""
    number = _number(answer.recorded)
    if number is not None:
        return _number(answer.given) == number
    return normalised(answer.given) == normalised(answer.recorded)


def is_within(answer: Answer) -> bool:
    """Report whether an answer contains the recorded one, as whole words or as a number."""
    number = _number(answer.recorded)
    if number is not None:
        return number in [_number(found) for found in _NUMBER.findall(answer.given)]
    if len(answer.recorded.split()) == 1:
        words = [normalised(word) for word in answer.given.split()]
        return normalised(answer.recorded) in words or is_right(answer)
    return f" {normalised(answer.recorded)} " in f" {normalised(answer.given)} "


def _number(text: str) -> float | None:
    plain = text.strip().rstrip(".").replace(",", "")
    if _NUMBER.fullmatch(plain) is None:
        return None
    try:
        return float(plain)
    except ValueError:
        return None


def answer_figures(answers: Sequence[Answer]) -> dict[str, AnswerFigures]:
    """Return the figures of all answers, and of each category that occurs."""
    by_name: dict[str, list[Answer]] = {"all": [], "yes/no": [], "number": [], "other": []}
    for answer in answers:
        by_name["all"].append(answer)
        by_name[_category(answer.recorded)].append(answer)
    return {name: _figures(some) for name, some in by_name.items() if some}


def answer_examples(answers: Sequence[Answer]) -> list[AnswerExample]:
    """Return a few answers, evenly spread over the data and always the same."""
    count = min(_EXAMPLES, len(answers))
    chosen = [answers[number * len(answers) // count] for number in range(count)]
    return [
        AnswerExample(
            sample=one.sample_id,
            question=one.question,
            recorded=one.recorded,
            given=one.given.strip(),
            right=is_right(one),
        )
        for one in chosen
    ]


def _category(recorded: str) -> str:
    if normalised(recorded) in ("yes", "no"):
        return "yes/no"
    return "other" if _number(recorded) is None else "number"


def _figures(answers: Sequence[Answer]) -> AnswerFigures:
    right = sum(map(is_right, answers))
    within = sum(map(is_within, answers))
    return AnswerFigures(
        count=len(answers),
        accuracy=right / len(answers),
        accuracy_interval=wilson_interval(right, len(answers)),
        contains=within / len(answers),
    )
