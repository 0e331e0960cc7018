"""What formats with one scale an output channel, or one for all, can say of a layer's grid."""

from __future__ import annotations

from torch import Tensor

from qubo_rounding.run_folder import RoundedLayer


def row_grid(done: RoundedLayer, where: str) -> tuple[Tensor, Tensor]:
    """float64 (g r) scales and zero points of the rows; (1) where all rows share them.

    Args:
        done: the rounded layer.
        where: the format, for the message.

    Raises:
        ValueError: scales that change along a row.
    """
    if (scales := done.scale.shape[2]) != 1:
        raise ValueError(
            f"layer {done.record.name!r} has {scales} scales a row; {where} takes one an output "
            "channel or one for all. Round with granularity 'channel' or 'tensor'."
        )
    scale, zero = done.scale.flatten(), done.zero_point.flatten()
    same = bool((scale == scale[0]).all()) and bool((zero == zero[0]).all())
    return (scale[:1], zero[:1]) if same else (scale, zero)


def in_layer(layer: str, name: str) -> str:
    """The dotted name of something that belongs to a layer; a network may be a layer itself."""
    return f"{layer}.{name}" if layer else name
