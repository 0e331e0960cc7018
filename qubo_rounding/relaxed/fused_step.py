"""One step of the rectified sigmoid in a single pass over memory, on a CPU.

Gradient, regulariser, Adam and the new h(V) are two dozen elementwise operations. One after the
other each of them goes through memory; fused, all of them take the time of two or three. There is
nothing here that relaxation.py and adam.py do not say; the tests compare both.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.relaxed.adam import KEPT_MEAN, KEPT_SQUARE, NEGLIGIBLE, Adam
from qubo_rounding.relaxed.relaxation import GAMMA, ZETA
from qubo_rounding.relaxed.softening import RectifiedSigmoid
from qubo_rounding.vector_math import exp32, log32

_PART = 2**15  # elements that are worth a thread
_ALIGNED = 64  # parts are multiples of it, so that no thread has a remainder of its own
_F = np.float32
_STRETCH, _LOWEST = _F(ZETA - GAMMA), _F(GAMMA)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _step(slope, step, v, mean, square, h, weight, power, length, epsilon, tiny, keep, keep_sq):  # pyright: ignore
    """The regulariser's slope is weight |2h - 1|^power sign(2h - 1); the rest is Adam's."""
    one = _F(1)
    for i in range(len(v)):
        share = (h[i] - _LOWEST) / _STRETCH  # the sigmoid, where it is not clipped
        inside = one if h[i] > _F(0) and h[i] < one else _F(0)
        centred = _F(2) * h[i] - one
        pull = weight * exp32(log32(max(abs(centred), _F(1e-30))) * power)
        pull = pull if centred >= _F(0) else -pull
        by_v = (slope[i] * step[i] + pull) * (inside * _STRETCH * (share - share * share)) + tiny
        mean[i] = keep * mean[i] + (one - keep) * by_v
        square[i] = keep_sq * square[i] + (one - keep_sq) * (by_v * by_v)
        v[i] -= length * mean[i] / (np.sqrt(square[i]) + epsilon)
        sigmoid = one / (one + exp32(-v[i]))
        h[i] = min(max(_STRETCH * sigmoid + _LOWEST, _F(0)), one)


class FusedStep:
    """The step of the rectified sigmoid's V; all tensors contiguous float32 of one size, on a CPU.

    Args:
        relaxation: whose regulariser sets in and is annealed.
        lam: weight of the regulariser.
        step: what the values move by when h goes from 0 to 1.
        adam: V and its moments, which change in place.
        h: h(V), which changes in place.
    """

    def __init__(
        self, relaxation: RectifiedSigmoid, lam: float, step: Tensor, adam: Adam, h: Tensor
    ) -> None:
        self._relaxation, self._lam, self._adam = relaxation, lam, adam
        tensors = (step, adam.value, adam.mean, adam.square, h)
        self._arrays = [tensor.view(-1).numpy() for tensor in tensors]
        parts = max(1, min(torch.get_num_threads(), h.numel() // _PART))
        share = -(-h.numel() // (parts * _ALIGNED)) * _ALIGNED
        self._parts = [slice(n * share, (n + 1) * share) for n in range(parts)]
        self._pool = ThreadPoolExecutor(parts) if parts > 1 else None

    def __call__(self, slope: Tensor, progress: float) -> None:
        """One step down.

        Args:
            slope: of the loss by the values, contiguous.
            progress: share of the iterations done.
        """
        beta = self._relaxation.beta(progress)
        pull = (0.0, 1.0) if beta is None else (-2 * beta * self._lam, beta - 1)
        numbers = (*pull, *self._adam.advance(), NEGLIGIBLE, KEPT_MEAN, KEPT_SQUARE)
        flat, scalars = slope.view(-1).numpy(), [_F(number) for number in numbers]

        def run(part: slice) -> None:
            _step(flat[part], *(array[part] for array in self._arrays), *scalars)

        for _ in (self._pool.map if self._pool else map)(run, self._parts):
            pass
