"""exp and log of float32 in operations that compilers vectorise, for loops inside numba kernels.

Source: Cephes (Moshier 1989), expf and logf.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

_F = np.float32


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
def exp32(x):  # pyright: ignore
    """e^x to 1e-7; x is cut to [-87, 87]."""
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
def log32(x):  # pyright: ignore
    """The logarithm of a normal positive x to 1e-6."""
    bits = _bits_of(x)  # pyright: ignore
    # Every step is cast: in 64 bits, as numba would have them, half of the lanes are lost.
    exponent = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
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
