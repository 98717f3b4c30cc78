"""``HiddenSigns``: states to signs, and signs to estimates of the states' directions.

A state x is rotated at random, and the signs of its first coordinates are kept. With r a row of the
rotation, E[sign(rᵀx) r] ∝ x / ‖x‖. So signs are an unbiased record of the direction, by one bit for
a coordinate (DRIVE, Vargaftik et al., 2021). The rotation is two rounds of random flips and a
Hadamard matrix. Its rows are then nearly Gaussian, also for the states of language models, in which
a few entries are large.

Shape suffixes: N response tokens, D hidden size, W width of the rotation, b bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlsi_cache.manifest import rotation_width

__all__ = ["HiddenSigns", "HiddenTap", "sign_rows"]

_NUM_FLIPS: Final = 256
"""Rows of random flips in each of two rounds. Each pair of rows is a rotation, and tokens take
turns with all pairs: the error of one rotation would be the same for all tokens."""
_STEP: Final = 40503
"""Distance between the rotations of neighbouring tokens. It is odd, so that none is left out."""
_ROUNDS: Final = 2
_TOKENS_AT_ONCE: Final = 2048


def sign_rows(key: str, num_tokens: int) -> NDArray[np.int64]:
    """Return the number of each token's rotation, ``[N]``.

    Args:
        key: SHA-256 hex of the conversation's content.
        num_tokens: its response tokens, N.
    """
    return (int(key[:4], 16) + _STEP * np.arange(num_tokens)) % _NUM_FLIPS**2


class HiddenSigns:
    """Turns hidden states into signs, and back into estimates of their directions.

    Args:
        width: hidden size of the states, D.
        bits: signs kept of each, b ≤ W.
        seed: seed of the rotations.
    """

    def __init__(self, width: int, bits: int, seed: int) -> None:
        self.width, self.bits, self.seed = width, bits, seed
        self.padded = rotation_width(width)

    @torch.no_grad()
    def encode(self, states: Tensor, rows: Tensor) -> Tensor:
        """Return the signs of states, packed to ``[N, b / 8]`` uint8, the first in the high bit.

        A state that is 0 or not finite gives a row of zeros, which no other state does.

        Args:
            states: ``[N, D]``.
            rows: ``[N]`` long, the number of each token's rotation.
        """
        with torch.autocast(states.device.type, enabled=False):
            parts = [
                self._encode(some.float(), own)
                for some, own in zip(
                    states.split(_TOKENS_AT_ONCE), rows.split(_TOKENS_AT_ONCE), strict=True
                )
            ]
        return torch.cat(parts)

    def _encode(self, states: Tensor, rows: Tensor) -> Tensor:
        # a state beyond float32's square root would overflow in the sums
        unit = states / states.abs().amax(-1, keepdim=True)
        rotated = F.pad(unit, (0, self.padded - self.width))
        for flips in self._flips(rows):
            rotated = _hadamard(rotated * flips)
        signs = (rotated[:, : self.bits] > 0).view(len(rows), self.bits // 8, 8)
        powers = 2 ** torch.arange(7, -1, -1, device=states.device)
        return (signs * powers).sum(-1).to(torch.uint8)

    @torch.no_grad()
    def decode(self, signs: Tensor, rows: Tensor) -> Tensor:
        """Return estimates of the states' directions, ``[N, D]`` float32.

        The mean of an estimate z of x over rotations is x / ‖x‖, to about 1 / 4W of it. So zᵀv is
        such an estimate of the cosine between x and any unit vector v.

        Args:
            signs: ``[N, b / 8]`` uint8.
            rows: ``[N]`` long, the number of each token's rotation.
        """
        with torch.autocast(signs.device.type, enabled=False):
            parts = [
                self._decode(some, own)
                for some, own in zip(
                    signs.split(_TOKENS_AT_ONCE), rows.split(_TOKENS_AT_ONCE), strict=True
                )
            ]
        return torch.cat(parts)

    def _decode(self, signs: Tensor, rows: Tensor) -> Tensor:
        places = torch.arange(7, -1, -1, device=signs.device)
        bits = (signs[..., None] >> places & 1).flatten(1)
        rotated = F.pad(bits * 2.0 - 1, (0, self.padded - self.bits))
        for flips in reversed(self._flips(rows)):
            rotated = _hadamard(rotated) * flips
        # E|g| of a standard Gaussian is √(2/π), and a coordinate of a unit vector has variance 1/W
        scale = (torch.pi * self.padded / 2) ** 0.5 / self.bits
        found: Tensor = rotated[:, : self.width] * scale
        return found

    def _flips(self, rows: Tensor) -> list[Tensor]:
        """Return ±1 of each round, ``[N, W]`` float32."""
        first, second = _tables(self.padded, self.seed, rows.device)
        numbers = rows // _NUM_FLIPS, rows % _NUM_FLIPS
        return [first[numbers[0]] * 2.0 - 1, second[numbers[1]] * 2.0 - 1]


@dataclass(frozen=True, slots=True)
class HiddenTap:
    """A decoder block whose state is kept as signs."""

    block: int
    """The block, from 0."""
    signs: HiddenSigns
    """How its states are kept."""


@lru_cache(maxsize=4)
def _tables(padded: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the flips of each round, ``[256, W]`` of 0 and 1."""
    size = _ROUNDS * _NUM_FLIPS * padded // 8
    stream = hashlib.shake_256(f"vlsi-cache.hidden:{seed}".encode()).digest(size)
    bits: NDArray[Any] = np.unpackbits(np.frombuffer(stream, np.uint8))
    tables = torch.from_numpy(bits.reshape(_ROUNDS, _NUM_FLIPS, padded))
    return tuple(tables.to(device))


def _hadamard(states: Tensor) -> Tensor:
    """Multiply ``[N, W]`` by the Hadamard matrix of W, scaled to be an isometry.

    It is the Kronecker product of two smaller ones, so W · 2√W products do for a row.
    """
    width = states.shape[-1]
    few = 1 << ((width.bit_length() - 1) // 2)
    folded = states.view(-1, width // few, few) @ _matrix(few, states.device)
    whole = _matrix(width // few, states.device) @ folded
    rotated: Tensor = whole.reshape(-1, width) / width**0.5
    return rotated


def _matrix(size: int, device: torch.device) -> Tensor:
    found = torch.ones(1, 1, device=device)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found
