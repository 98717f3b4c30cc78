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

from vlsi_cache.errors import ModelError, first_line
from vlsi_cache.models.loading.configs import text_config
from vlsi_cache.models.places.devices import device_of

__all__ = [
    "Trace",
    "block_output",
    "padded_row",
    "probe_inputs",
    "probe_logits",
    "removing",
    "text_pass",
    "trace_blocks",
    "unbindable",
    "undisturbed",
]

NUM_TOKENS = 6
NUM_SHARED = 3
"""The two rows of the probe agree in these first tokens, and differ in all others."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Tensors and modules of one forward pass."""

    inputs: dict[str, Tensor]
    """The probe, two rows of text."""
    last_hidden: Tensor
    """[2, T, D], the output of the last block."""
    readers: tuple[nn.Module, ...]
    """Modules outside the blocks whose input is exactly the last block's output, in order."""
    head_input: Tensor
    """[2, T, D], the input of the output embeddings."""
    logits: Tensor
    """[2, T, V], the model's output."""


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
    inputs = probe_inputs(model)
    with removing(hooks):
        logits = probe_logits(model, inputs)
    once_each = all(notes.num_calls[index] == 1 for index in range(len(blocks)))
    if notes.last_hidden is None or not once_each:
        raise unbindable(
            model, "decoder blocks do not run once each", "every block called once per pass"
        )
    _validate_numbers(model, notes.last_hidden, logits)
    if notes.head_input is None:
        raise unbindable(model, "output embeddings are never called", "logits made by the head")
    return Trace(inputs, notes.last_hidden, tuple(notes.readers), notes.head_input, logits)


def _validate_numbers(model: PreTrainedModel, last_hidden: Tensor, logits: Tensor) -> None:
    if not torch.isfinite(last_hidden).all():
        raise unbindable(
            model,
            "hidden states are not finite",
            "finite numbers",
            found="NaN or infinity",
            mend="Copy the checkpoint again, or use another dtype",
        )
    if torch.isnan(logits).any():  # some families write −∞ for tokens that nobody may say
        raise unbindable(
            model,
            "logits are not numbers",
            "sound weights",
            found="NaN",
            mend="Copy the checkpoint again, or use another dtype",
        )


def probe_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits [B, T, V] of a few text tokens."""
    with text_pass(model):
        logits: Tensor = model(**inputs, use_cache=False, return_dict=True).logits
    return logits


def padded_row(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The probe with its second row cut to the shared tokens, and padded on the right."""
    ids, mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    found = getattr(text_config(model), "pad_token_id", None)
    num_rows = len(_embedding(model).weight)
    padding: int = found if isinstance(found, int) and 0 <= found < num_rows else 0
    ids[1, NUM_SHARED:] = padding
    mask[1, NUM_SHARED:] = 0
    return inputs | {"input_ids": ids, "attention_mask": mask}


@contextmanager
def text_pass(model: PreTrainedModel) -> Iterator[None]:
    """Refuse a model whose pass over text alone fails."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # Anything, because the code is the family's own.
        sees = getattr(model.config, "vision_config", None) is not None
        raise unbindable(
            model,
            "a text-only forward pass failed",
            "logits of a few tokens",
            found=f"{type(error).__name__}: {first_line(error).rstrip('.')}",
            mend="Use a model that also reads text without an image"
            if sees
            else "Use another model, or another dtype or device",
        ) from error


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


def _embedding(model: PreTrainedModel) -> Any:
    return model.get_input_embeddings()


def probe_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of ordinary tokens, to which the configuration gives no meaning such as images."""
    special: set[int] = set()
    for config in (model.config, text_config(model)):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                special.update(value if isinstance(value, list) else [value])
    ordinary = (token for token in range(len(_embedding(model).weight)) if token not in special)
    wanted = 2 * NUM_TOKENS - NUM_SHARED
    chosen = [token for token, _ in zip(ordinary, range(wanted), strict=False)]
    if len(chosen) < wanted:
        raise unbindable(model, "has hardly any ordinary tokens", f"{wanted} tokens")
    rows = [chosen[:NUM_TOKENS], chosen[:NUM_SHARED] + chosen[NUM_TOKENS:]]
    ids = torch.tensor(rows, device=device_of(_embedding(model)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


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
