"""The teacher's own answers: sampled from its whole distribution by several processes."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from experiments.longer.material import Material
from experiments.longer.setting import SYSTEM, Setting

__all__ = ["Answers", "answer"]

_GROUPS_SORTED = 8
"""Batches among which prompts are sorted by length."""
_LOOKS_EVERY = 16
"""Tokens from one look whether all answers have ended to the next."""


@dataclass(frozen=True)
class Answers:
    """How much was sampled."""

    conversations: int
    tokens: int

    @property
    def tokens_each(self) -> float:
        """Mean tokens of an answer, with the end of its turn."""
        return self.tokens / self.conversations


def answer(setting: Setting, material: Material, device: torch.device) -> Answers:
    """Write the conversations that the teacher answers within the time and the tokens."""
    batches = _batches(material.prompts, setting.sampling_batch)
    shares = [batches[number :: setting.samplers] for number in range(setting.samplers)]
    given = [
        (setting, material.teacher, share, device, number) for number, share in enumerate(shares)
    ]
    if setting.samplers == 1:
        found = [_sample(*given[0])]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(setting.samplers, mp_context=context) as pool:
            found = list(pool.map(_sample, *zip(*given, strict=True)))
    rows = [row for share in found for row in share]
    if not rows:
        raise SystemExit("the teacher gave no answer of two characters within its time")
    random.Random(2).shuffle(rows)
    _write(setting.data, rows)
    return Answers(len(rows), sum(row["tokens"] for row in rows))


def _batches(prompts: list[str], size: int) -> list[list[str]]:
    """Return batches of prompts of like lengths, which are padded less, in random order.

    Any beginning of the order is a fair sample.
    """
    shuffled = random.Random(0).sample(prompts, len(prompts))
    batches = []
    for begin in range(0, len(shuffled), _GROUPS_SORTED * size):
        near = sorted(shuffled[begin : begin + _GROUPS_SORTED * size], key=len)
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    random.Random(1).shuffle(batches)
    return batches


def _sample(
    setting: Setting, teacher: Path, batches: list[list[str]], device: torch.device, number: int
) -> list[dict[str, Any]]:
    """Answer one process's share of the batches."""
    began = time.monotonic()
    torch.manual_seed(1000 + number)
    sampler = Sampler.load(teacher, device)
    rows: list[dict[str, Any]] = []
    tokens = 0
    for batch in batches:
        late = time.monotonic() - began > setting.sampling_seconds
        if late or tokens >= setting.sampled_tokens / setting.samplers:
            break
        for prompt, ids in zip(batch, sampler.answers(batch, setting.new_tokens), strict=True):
            text = sampler.text(ids)
            if text is not None:
                tokens += len(ids) + 1
                rows.append({"prompt": prompt, "answer": text, "tokens": len(ids) + 1})
    return rows


@dataclass
class Sampler:
    """A model that answers batches of prompts."""

    model: Any
    tokenizer: Any
    ends: Tensor
    """Tokens that end an answer."""
    device: torch.device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Sampler:
        """Load it, in bfloat16 on a GPU."""
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        ends = {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id}
        return cls(
            model.to(device).eval(), tokenizer, torch.tensor(sorted(ends), device=device), device
        )

    @torch.inference_mode()
    def answers(self, prompts: list[str], new_tokens: int) -> list[list[int]]:
        """Return the token ids of each answer, without the end of its turn."""
        texts = [self._rendered(prompt) for prompt in prompts]
        encoded = self.tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False
        ).to(self.device)
        mask = encoded["attention_mask"]
        room = mask.new_ones(len(prompts), new_tokens)
        whole, width, lengths = torch.cat([mask, room], 1), mask.shape[1], mask.sum(1)
        cache = DynamicCache()
        now, places = encoded["input_ids"], (mask.cumsum(1) - 1).clamp(min=0)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        written: list[Tensor] = []
        for step in range(new_tokens):
            logits = self.model(
                input_ids=now,
                attention_mask=whole[:, : width + step],
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if step == 0 and not bool(logits.isfinite().all()):
                raise SystemExit("the teacher's logits are not finite")
            token = _drawn(logits).where(~done, self.ends[0])
            written.append(token)
            done |= torch.isin(token, self.ends)
            now, places = token[:, None], (lengths + step)[:, None]
            if step % _LOOKS_EVERY == _LOOKS_EVERY - 1 and bool(done.all()):
                break
        return [self._cut(row) for row in torch.stack(written, 1).tolist()]

    def text(self, ids: list[int]) -> str | None:
        """Return an answer's text, or None where it is too short or has marks of the template."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "").strip()
        marks = ("<|", "<image", "<video")
        is_plain = len(ids) >= 2 and len(text) >= 2 and not any(mark in text for mark in marks)
        return text if is_plain else None

    def _cut(self, row: list[int]) -> list[int]:
        ends = self.ends.tolist()
        return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]

    def _rendered(self, prompt: str) -> str:
        messages = _messages(prompt)
        found = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return str(found)


def _drawn(logits: Tensor) -> Tensor:
    """Draw a token from each row. A race of exponentials is quicker than `torch.multinomial`."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_().clamp_(min=1e-20)
    return (logits.float().softmax(-1) / noise).argmax(-1)


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = []
    for number, row in enumerate(rows):
        messages = [*_messages(row["prompt"]), {"role": "assistant", "content": row["answer"]}]
        lines.append(json.dumps({"id": f"c{number}", "messages": messages}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
