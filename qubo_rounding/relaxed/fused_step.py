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
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from qubo_rounding.relaxed.adam import KEPT_MEAN, KEPT_SQUARE, NEGLIGIBLE, Adam
from qubo_rounding.relaxed.relaxation import GAMMA, ZETA
from qubo_rounding.relaxed.softening import RectifiedSigmoid

_PART = 2**15  # elements that are worth a thread
_ALIGNED = 64  # parts are multiples of it, so that no thread has a remainder of its own
_F = np.float32
_STRETCH, _LOWEST = _F(ZETA - GAMMA), _F(GAMMA)


@intrinsic
def _bits_of(context, x):  # pyright: ignore
    """The bits of a float32 as int32."""

    def generate(context, builder, signature, arguments):  # pyright: ignore
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _of_bits(context, x):  # pyright: ignore
    """The float32 with the bits of an int32."""

    def generate(context, builder, signature, arguments):  # pyright: ignore
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@numba.njit(inline="always")
def _exp(x):  # pyright: ignore
    """e^x to 1e-7, in operations that compilers vectorise; x is cut to [-87, 87].

    Source: Cephes (Moshier 1989), expf.
    """
    x = min(max(x, _F(-87)), _F(87))
    k = np.floor(x * _F(1.44269504088896341) + _F(0.5))
    r = (x - k * _F(0.693359375)) - k * _F(-2.12194440e-4)
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))
    return (p * (r * r) + r + _F(1)) * _of_bits(power)  # pyright: ignore


@numba.njit(inline="always")
def _log(x):  # pyright: ignore
    """Logarithm of a normal positive x to 1e-6; source as for `_exp`, logf."""
    bits = _bits_of(x)  # pyright: ignore
    exponent = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = _of_bits(np.int32(bits - np.int32(exponent << np.int32(23)))) - _F(1)  # pyright: ignore
    p = _F(7.0376836292e-2)
    p = p * m - _F(1.1514610310e-1)
    p = p * m + _F(1.1676998740e-1)
    p = p * m - _F(1.2420140846e-1)
    p = p * m + _F(1.4249322787e-1)
    p = p * m - _F(1.6668057665e-1)
    p = p * m + _F(2.0000714765e-1)
    p = p * m - _F(2.4999993993e-1)
    p = p * m + _F(3.3333331174e-1)
    square, k = m * m, _F(exponent)
    return m + (p * m * square + k * _F(-2.12194440e-4) - _F(0.5) * square) + k * _F(0.693359375)


@numba.njit(cache=True, nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _step(slope, step, v, mean, square, h, weight, power, length, epsilon, tiny, keep, keep_sq):  # pyright: ignore
    """The regulariser's slope is weight |2h - 1|^power sign(2h - 1); the rest is Adam's."""
    one = _F(1)
    for i in range(len(v)):
        share = (h[i] - _LOWEST) / _STRETCH  # the sigmoid, where it is not clipped
        inside = one if h[i] > _F(0) and h[i] < one else _F(0)
        centred = _F(2) * h[i] - one
        pull = weight * _exp(_log(max(abs(centred), _F(1e-30))) * power)
        pull = pull if centred >= _F(0) else -pull
        by_v = (slope[i] * step[i] + pull) * (inside * _STRETCH * (share - share * share)) + tiny
        mean[i] = keep * mean[i] + (one - keep) * by_v
        square[i] = keep_sq * square[i] + (one - keep_sq) * (by_v * by_v)
        v[i] -= length * mean[i] / (np.sqrt(square[i]) + epsilon)
        sigmoid = one / (one + _exp(-v[i]))
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
