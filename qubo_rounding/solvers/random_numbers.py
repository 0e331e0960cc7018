"""Counter-based random numbers: a pure function of (seed, stream, step), so order never matters.

Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over a Weyl sequence.
"""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@numba.njit(cache=True, nogil=True, inline="always")
def random_bits(key: np.uint64, step: np.uint64) -> np.uint64:
    """64 random bits for step number `step` of the sequence `key`."""
    z = key + (step + np.uint64(1)) * _WEYL
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@numba.vectorize(["uint64(uint64, uint64)"], cache=True)
def _bits(key, step):  # pyright: ignore[reportMissingParameterType]  # numba types it
    return random_bits(key, step)


def stream_keys(seed: int, stream: Tensor, draw: int = 0) -> np.ndarray:
    """uint64 key of every row's sequence, from the seed, the row's stream and the draw.

    Args:
        seed: any Python integer.
        stream: int64 of any shape; the result has the same shape.
        draw: number of the repetition (read) within one solve.
    """
    root = _bits(np.uint64(seed % 2**64), np.uint64(draw))
    return np.asarray(_bits(root, stream.cpu().numpy().astype(np.uint64)))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """float64 in [0, 1), shape keys.shape + (count,): the first `count` steps of each sequence."""
    bits = _bits(keys[..., None], np.arange(count, dtype=np.uint64))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)
