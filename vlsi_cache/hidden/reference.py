"""The same by plain matrices, for tests to compare with."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["plain_direction", "plain_rotation", "plain_signs"]


def plain_rotation(width: int, seed: int, number: int) -> NDArray[np.float64]:
    """Return one of the rotations as a matrix ``[W, W]``, by FORMAT.md.

    Args:
        width: hidden size, D.
        seed: seed of the rotations.
        number: number of the rotation, 0 … 65,535.
    """
    padded = 64
    while padded < width:
        padded *= 2
    stream = hashlib.shake_256(f"vlsi-cache.hidden:{seed}".encode()).digest(64 * padded)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(2, 256, padded)
    numbers = np.arange(padded)
    odd = np.bitwise_count(numbers[:, None] & numbers) % 2
    hadamard = (1.0 - 2 * odd) / np.sqrt(padded)
    rows = number // 256, number % 256
    first, second = (np.diag(2.0 * flips[row] - 1) for flips, row in zip(bits, rows, strict=True))
    rotation: NDArray[np.float64] = hadamard @ second @ hadamard @ first
    return rotation


def plain_signs(
    state: NDArray[np.float64], rotation: NDArray[np.float64], bits: int
) -> NDArray[np.uint8]:
    """Return a state's signs, packed to ``[b / 8]``."""
    padded = np.zeros(len(rotation))
    padded[: len(state)] = state
    return np.packbits((rotation @ padded)[:bits] > 0)


def plain_direction(
    signs: NDArray[np.uint8], rotation: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    """Return the estimate of a state's direction, ``[D]``."""
    signed = 2.0 * np.unpackbits(signs) - 1
    scale = np.sqrt(np.pi * len(rotation) / 2) / len(signed)
    found: NDArray[np.float64] = scale * (rotation[: len(signed)].T @ signed)[:width]
    return found
