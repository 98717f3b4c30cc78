"""Tracing a model on a few tokens, to find its final norm and prove its logit transform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlsi_cache.errors import ModelError
from vlsi_cache.models.head import LogitTransform
from vlsi_cache.models.loading import text_config

__all__ = ["Trace", "block_output", "prove_head", "trace_blocks", "unbindable", "undisturbed"]

NUM_TOKENS = 5
RAMP = 80.0
"""Raw logits from -80 to 80 pass through the model's transform: far beyond any soft-cap in use."""


@dataclass(slots=True)
class Trace:
    """What one forward pass showed."""

    last_hidden: Tensor | None = None
    """[1, T, D], the output of the last block."""
    calls: dict[int, int] = field(default_factory=dict)
    """Block index → how often it was called."""
    readers: list[nn.Module] = field(default_factory=list)
    """Modules outside the blocks that were fed exactly the last block's output, in order."""
    head_input: Tensor | None = None
    """[1, T, D], what the output embeddings were fed."""
    logits: Tensor | None = None
    """[1, T, V], what the model returned."""


def block_output(output: Any) -> Tensor:
    """The hidden state in what a block returns: the tensor itself, or the first of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden


def unbindable(model: nn.Module, what: str, expected: str, *, found: object = None) -> ModelError:
    """The refusal of a model, with its name."""
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    name = f"{type(model).__name__} ({path})" if path else type(model).__name__
    return ModelError(
        what,
        where=name,
        expected=expected,
        found=found,
        mend="Use a decoder-only model of transformers whose head is linear",
    )


def trace_blocks(model: PreTrainedModel, blocks: nn.ModuleList, output: nn.Module) -> Trace:
    """Run a few text tokens through the model and note who reads the last block's output.

    Raises:
        ModelError: the pass failed, or the blocks did not run once each, or the head not at all.
    """
    trace = Trace()
    inside = {id(part) for part in blocks.modules()}
    hooks = [
        block.register_forward_hook(partial(_note_block, trace, index, len(blocks)))
        for index, block in enumerate(blocks)
    ]
    for part in model.modules():
        if id(part) not in inside and part is not output:
            hooks.append(part.register_forward_pre_hook(partial(_note_reader, trace)))
    hooks.append(output.register_forward_pre_hook(partial(_note_head, trace)))
    with _removing(hooks):
        trace.logits = _logits(model)
    if trace.last_hidden is None or set(trace.calls.values()) != {1}:
        raise unbindable(
            model, "decoder blocks do not run once each", "every block called once per pass"
        )
    if trace.head_input is None:
        raise unbindable(model, "output embeddings are never called", "logits made by the head")
    return trace


def prove_head(
    model: PreTrainedModel, output: Any, trace: Trace
) -> tuple[nn.Module, LogitTransform]:
    """The final norm and the logit transform with which head(norm(hidden)) is the model's logits.

    Raises:
        ModelError: no module between the last block and the head, and no transform that the
            configuration speaks of, gives the model's own logits.
    """
    assert trace.last_hidden is not None  # noqa: S101 (trace_blocks has seen to it)
    assert trace.head_input is not None  # noqa: S101
    assert trace.logits is not None  # noqa: S101
    norm = _final_norm(model, trace)
    transform = _transform(model, output)
    logits = transform.apply(output(norm(trace.last_hidden)))
    if logits.shape != trace.logits.shape or not _equal(logits, trace.logits):
        raise unbindable(
            model,
            "head(norm(hidden)) is not what the model returns as logits",
            "equal logits on a traced batch",
        )
    return norm, transform


def _final_norm(model: PreTrainedModel, trace: Trace) -> nn.Module:
    assert trace.last_hidden is not None  # noqa: S101
    assert trace.head_input is not None  # noqa: S101
    # An inactive dropout is fed the same tensor as the norm behind it: try every reader.
    for reader in [*trace.readers, nn.Identity()]:
        features = block_output(reader(trace.last_hidden))
        if features.shape == trace.head_input.shape and _equal(features, trace.head_input):
            return reader
    readers = ", ".join(type(reader).__name__ for reader in trace.readers) or "none"
    raise unbindable(
        model,
        "the final norm was not found",
        "a module that turns the last block's output into the head's input",
        found=f"{readers} reading the last block's output",
    )


def _transform(model: PreTrainedModel, output: nn.Module) -> LogitTransform:
    """The transform that the model applies to a ramp of raw logits put in place of its own.

    A natural batch cannot tell a soft-cap of 30 from none, as its logits are small.
    """

    def replace(_: nn.Module, __: tuple[Any, ...], raw: Tensor) -> Tensor:
        ramps.append(torch.linspace(-RAMP, RAMP, raw.shape[-1], device=raw.device).expand_as(raw))
        return ramps[-1]

    ramps: list[Tensor] = []
    with _removing([output.register_forward_hook(replace)]):
        logits = _logits(model)
    for transform in _candidates(model):
        if _equal(transform.apply(ramps[-1]), logits):
            return transform
    named = ", ".join(f"{name} = {value}" for name, value in _settings(model).items())
    raise unbindable(
        model,
        "what follows the head is neither a scale nor a soft-cap named in the configuration",
        "logit_scale, logits_scaling, lm_head_multiplier or final_logit_softcapping, or nothing",
        found=named or "none of them, yet the logits are not the head's product",
    )


_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale")
_SOFTCAPS = ("final_logit_softcapping", "final_logit_soft_cap", "logits_soft_cap")


def _settings(model: PreTrainedModel) -> dict[str, float]:
    found: dict[str, float] = {}
    for config in (model.config, text_config(model)):
        for name in (*_SCALES, *_SOFTCAPS):
            value = getattr(config, name, None)
            if isinstance(value, (int, float)) and value > 0:
                found[name] = float(value)
    return found


def _candidates(model: PreTrainedModel) -> Iterator[LogitTransform]:
    settings = _settings(model)
    scales = [1.0]
    for name in _SCALES:
        if name in settings:
            # Families multiply or divide by a setting of the same name; the proof decides.
            scales += [settings[name], 1.0 / settings[name]]
    caps = [None, *(settings[name] for name in _SOFTCAPS if name in settings)]
    for scale, softcap in product(scales, caps):
        yield LogitTransform(scale, softcap)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Equal up to a few units of rounding in the coarser dtype, relative to the largest value."""
    coarsest = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps)
    left, right = left.float().to(right.device), right.float()
    largest = float(right.abs().max())
    return bool((left - right).abs().max() <= max(8 * coarsest, 1e-5) * max(largest, 1e-6))


def _logits(model: PreTrainedModel) -> Tensor:
    """Logits [1, T, V] of a few text tokens."""
    try:
        output = model(input_ids=_token_ids(model), use_cache=False)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise unbindable(
            model, "a text-only forward pass failed", "logits of a few tokens", found=error
        ) from error
    logits: Tensor = output.logits
    return logits


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; modes and random states as before afterwards."""
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
    """[1, T] ids of ordinary tokens: none that the configuration gives a meaning, such as images."""
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
    trace: Trace, index: int, num_blocks: int, _: nn.Module, __: tuple[Any, ...], output: Any
) -> None:
    trace.calls[index] = trace.calls.get(index, 0) + 1
    if index == num_blocks - 1:
        trace.last_hidden = block_output(output)


def _note_reader(trace: Trace, part: nn.Module, args: tuple[Any, ...]) -> None:
    last = trace.last_hidden
    if last is None or not args or not isinstance(args[0], Tensor) or args[0].shape != last.shape:
        return
    # By value: hooks that place models on several devices hand on a copy.
    if torch.equal(args[0].to(last.device), last):
        trace.readers.append(part)


def _note_head(trace: Trace, _: nn.Module, args: tuple[Any, ...]) -> None:
    trace.head_input = args[0]


@contextmanager
def _removing(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
