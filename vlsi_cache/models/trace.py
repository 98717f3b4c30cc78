"""Tracing a model on a few text tokens: which modules read the last block's output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.loading import text_config

__all__ = [
    "Trace",
    "block_output",
    "probe_logits",
    "removing",
    "trace_blocks",
    "unbindable",
    "undisturbed",
]

NUM_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Trace:
    """Tensors and modules of one forward pass."""

    last_hidden: Tensor
    """[1, T, D], the output of the last block."""
    readers: tuple[nn.Module, ...]
    """Modules outside the blocks whose input is exactly the last block's output, in order."""
    head_input: Tensor
    """[1, T, D], the input of the output embeddings."""
    logits: Tensor
    """[1, T, V], the model's output."""


@dataclass(slots=True)
class _Notes:
    """An unfinished trace, which hooks fill."""

    num_calls: Counter[int] = field(default_factory=Counter)
    last_hidden: Tensor | None = None
    readers: list[nn.Module] = field(default_factory=list)
    head_input: Tensor | None = None


def block_output(output: Any) -> Tensor:
    """The hidden state in a block's output: the tensor itself, or the first of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden


def unbindable(
    model: nn.Module,
    what: str,
    expected: str,
    *,
    found: object = None,
    mend: str = "Use a decoder-only model of transformers whose head is linear",
) -> ModelError:
    """The error that refuses a model, with the model's name."""
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    name = f"{type(model).__name__} ({path})" if path else type(model).__name__
    return ModelError(
        what,
        where=name,
        expected=expected,
        found=found,
        mend=mend,
    )


def trace_blocks(model: PreTrainedModel, blocks: nn.ModuleList, output: nn.Module) -> Trace:
    """Run a few text tokens through the model, and note the modules that read the last block.

    Raises:
        ModelError: the pass failed, a block did not run exactly once, or the head did not run.
    """
    notes = _Notes()
    inside = {id(part) for part in blocks.modules()}
    hooks = [
        block.register_forward_hook(partial(_note_block, notes, index, len(blocks)))
        for index, block in enumerate(blocks)
    ]
    # The final norm is one of the modules outside the blocks. The head has a hook of its own.
    hooks += [
        part.register_forward_pre_hook(partial(_note_reader, notes))
        for part in model.modules()
        if id(part) not in inside and part is not output
    ]
    hooks.append(output.register_forward_pre_hook(partial(_note_head, notes)))
    with removing(hooks):
        logits = probe_logits(model)
    once_each = all(notes.num_calls[index] == 1 for index in range(len(blocks)))
    if notes.last_hidden is None or not once_each:
        raise unbindable(
            model, "decoder blocks do not run once each", "every block called once per pass"
        )
    if not torch.isfinite(notes.last_hidden).all():
        raise unbindable(
            model, "hidden states are not finite", "finite numbers", found="NaN or infinity"
        )
    if notes.head_input is None:
        raise unbindable(model, "output embeddings are never called", "logits made by the head")
    return Trace(notes.last_hidden, tuple(notes.readers), notes.head_input, logits)


def probe_logits(model: PreTrainedModel) -> Tensor:
    """Logits [1, T, V] of a few text tokens."""
    try:
        output = model(input_ids=_token_ids(model), use_cache=False)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise unbindable(
            model,
            "a text-only forward pass failed",
            "logits of a few tokens",
            found=str(error).rstrip("."),
            mend="Use a model that also reads text without an image",
        ) from error
    logits: Tensor = output.logits
    return logits


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients inside. Restore modes and random states afterwards."""
    training = [part for part in model.modules() if part.training]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            model.eval()
            yield
    finally:
        for part in training:
            part.training = True


def _token_ids(model: PreTrainedModel) -> Tensor:
    """Ids [1, T] of ordinary tokens, to which the configuration gives no meaning such as images."""
    embedding: Any = model.get_input_embeddings()
    special: set[int] = set()
    for config in (model.config, text_config(model)):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                special.update(value if isinstance(value, list) else [value])
    ordinary = (token for token in range(embedding.weight.shape[0]) if token not in special)
    chosen = [token for token, _ in zip(ordinary, range(NUM_TOKENS), strict=False)]
    return torch.tensor([chosen], device=embedding.weight.device)


def _note_block(
    notes: _Notes, index: int, num_blocks: int, _: nn.Module, __: tuple[Any, ...], output: Any
) -> None:
    notes.num_calls[index] += 1
    if index == num_blocks - 1:
        notes.last_hidden = block_output(output)


def _note_reader(notes: _Notes, part: nn.Module, args: tuple[Any, ...]) -> None:
    last = notes.last_hidden
    if last is None or not args or not isinstance(args[0], Tensor) or args[0].shape != last.shape:
        return
    # Compared by value, because hooks that spread a model over devices pass on a copy.
    if torch.equal(args[0].to(last.device), last):
        notes.readers.append(part)


def _note_head(notes: _Notes, _: nn.Module, args: tuple[Any, ...]) -> None:
    notes.head_input = args[0]


@contextmanager
def removing(hooks: list[Any]) -> Iterator[None]:
    """Remove the hooks at the end, also after an error."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
