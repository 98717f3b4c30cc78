"""All verbalizers of one backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vlsi_cache.errors import ModelError
from vlsi_cache.models import Decoder, TapState, device_of, hollow_out, is_plain, text_config
from vlsi_cache.recipe import VerbalizerSection
from vlsi_cache.verbalizer.structures import (
    BlockVerbalizer,
    GatedVerbalizer,
    LensVerbalizer,
    LinearVerbalizer,
    marked,
)

__all__ = ["VerbalizerBank", "build_verbalizers"]


class VerbalizerBank(nn.Module):
    """One verbalizer per tap, without the backbone's frozen norm and head.

    Args:
        layers: one or two structures for each tap.
        settings: the structure that they were built with.
        linear: a linear map of each tap's state, which is added to what its structures read.
    """

    def __init__(
        self,
        layers: Mapping[int, nn.ModuleList],
        settings: VerbalizerSection,
        linear: Mapping[int, nn.Linear] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.layers = nn.ModuleDict({str(tap): stack for tap, stack in layers.items()})
        self.linear = nn.ModuleDict({str(tap): part for tap, part in (linear or {}).items()})

    @property
    def taps(self) -> tuple[int, ...]:
        """Block indices of the taps, ascending."""
        return tuple(sorted(int(tap) for tap in self.layers))

    def units(self) -> list[nn.Module]:
        """Return the structures with weights, which run one after another."""
        if not self.settings.trains:
            return []
        layers = [layer for tap in self.taps for layer in self.layers[str(tap)].children()]
        return [*layers, *self.linear.values()]

    def forward(self, states: Mapping[int, TapState], positions: Tensor) -> dict[int, Tensor]:
        """Return verbalized hidden states, before the backbone's final norm.

        Args:
            states: each tap's captured state.
            positions: ``[N]`` long, flat indices into ``B × T``.

        Returns:
            tap → ``[N, D]``.
        """
        return {tap: self._read(tap, states[tap], positions) for tap in self.taps}

    @property
    def devices(self) -> dict[str, torch.device]:
        """Device of each tap's verbalizers."""
        return {name: device_of(stack) for name, stack in self.layers.items()}

    def linear_change(self, tap: int) -> Tensor:
        """Return the ``[D, D]`` weight of a linear map that is added to a tap's reading.

        With ``structure: mlp`` it is the structure itself.
        """
        holder = self.linear[str(tap)] if self.linear else self.layers[str(tap)][0].map  # type: ignore[index]
        assert isinstance(holder, nn.Linear)
        return holder.weight

    def _read(self, tap: int, state: TapState, positions: Tensor) -> Tensor:
        positions = positions.to(state.hidden.device)
        stack = self.layers[str(tap)]
        tapped = state.hidden
        assert isinstance(stack, nn.ModuleList)
        everywhere = None
        for layer in list(stack)[:-1]:
            if everywhere is None:
                everywhere = torch.arange(state.hidden[..., 0].numel(), device=positions.device)
            hidden = self._run(layer, state, everywhere)
            state = dataclasses.replace(state, hidden=hidden.view_as(state.hidden))
        read = self._run(stack[-1], state, positions)
        if not self.linear:
            return read
        change = self.linear[str(tap)]
        assert isinstance(change, nn.Linear)
        own = marked(tapped.flatten(0, 1)[positions], _mark_of(change, tapped.device))
        return read + change(own.to(change.weight.dtype)).to(read.dtype)  # type: ignore[no-any-return]

    def _run(self, layer: nn.Module, state: TapState, positions: Tensor) -> Tensor:
        settings: dict[str, Any] = {"residual": self.settings.residual}
        mark = _mark_of(layer, state.hidden.device)
        settings |= {} if mark is None else {"mark": mark}
        read: Tensor = layer(state, positions, **settings)
        return read


def _mark_of(layer: nn.Module, device: torch.device) -> Tensor | None:
    """Return what marks the inputs of a unit that FSDP shards, if gradients are wanted."""
    if not isinstance(layer, FSDPModule) or not torch.is_grad_enabled():
        return None
    return torch.zeros((), device=device, requires_grad=True)


def build_verbalizers(
    decoder: Decoder,
    taps: Sequence[int],
    settings: VerbalizerSection,
    *,
    seed: int,
    among: Sequence[int] = (),
) -> VerbalizerBank:
    """Build new verbalizers, each beside the block that it reads, in float32.

    A spread model then has its verbalizers spread, and hidden states of whole sequences stay where
    they are. Only those of response tokens go on to the head.

    With ``residual`` each starts as the identity, so that it reads its tap as the logit lens does.
    Where they are to have a closed-form start, ``start_by_ridge`` sets it later.

    Args:
        decoder: the backbone that they read.
        taps: block indices.
        settings: structure, depth, residual.
        seed: seed of the initial weights.
        among: the taps that the seed counts, if these are some of them.
    """
    layers, linear = {}, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tap in among or taps:
            stack = nn.ModuleList(_build(decoder, tap, settings) for _ in range(settings.depth))
            if tap in taps:
                layers[tap] = stack
                if decoder.is_empty:  # these too come from the process that holds the weights
                    hollow_out(stack.float())
        for tap in taps if _needs_linear(settings) else ():
            linear[tap] = _zero_map(decoder.hidden_size)
            if decoder.is_empty:
                hollow_out(linear[tap])
    for parts in (layers, linear):
        for tap, part in parts.items():
            part.to(device=device_of(decoder.blocks[tap]), dtype=torch.float32)
    return VerbalizerBank(layers, settings, linear)


def _needs_linear(settings: VerbalizerSection) -> bool:
    """Report whether a closed-form start needs a map beside the structures."""
    return settings.starts_by_ridge and (settings.structure, settings.depth) != ("mlp", 1)


def _zero_map(size: int) -> nn.Linear:
    zero = nn.Linear(size, size, bias=False)
    nn.init.zeros_(zero.weight)
    return zero


def _build(decoder: Decoder, tap: int, settings: VerbalizerSection) -> nn.Module:
    layer: LinearVerbalizer | GatedVerbalizer | BlockVerbalizer | LensVerbalizer
    if settings.structure == "logit_lens":
        layer = LensVerbalizer()
    elif settings.structure == "mlp":
        layer = LinearVerbalizer(decoder.hidden_size)
    elif settings.structure == "verb_ffn":
        layer = GatedVerbalizer(decoder.hidden_size, decoder.hidden_size)
    elif settings.structure == "ffn":
        layer = GatedVerbalizer(decoder.hidden_size, _expansion_size(decoder))
    else:
        _validate_copied(decoder, tap)
        layer = BlockVerbalizer(decoder.blocks[tap])
    if settings.residual:
        layer.zero_last_map()
    return layer


def _expansion_size(decoder: Decoder) -> int:
    """Return the width of the backbone's own feed-forward layers, or four times its hidden size."""
    config = text_config(decoder.model)
    return int(getattr(config, "intermediate_size", None) or 4 * decoder.hidden_size)


def _validate_copied(decoder: Decoder, tap: int) -> None:
    if not is_plain(decoder.blocks[tap]):
        raise ModelError(
            "a verbalizer of structure decoder copies a block, which cannot be copied here",
            where=f"tap {tap}",
            expected="a block that lies whole and unquantised on one device",
            mend="Choose another verbalizer.structure, such as verb_ffn",
        )
