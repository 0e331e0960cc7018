"""The rounding problem of one layer, and the `.npz` file that carries it.

Everything here is mathematics: no network, no solver, no clock. Letters: g groups, r rows (output
channels per group), d columns (inputs of one output).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qubo_rounding.exchange_file import (
    ProblemError,
    json_from,
    load_npz,
    save_npz,
    tensor_from,
)
from qubo_rounding.solution import Solution

_SMALLEST_SHARE = 1e-150  # of a row's energies that a unit may be
_LARGEST = 1e200  # energy; products of a few of them overflow nothing that matters
_SYMMETRY_TOLERANCE = 1e-9  # relative to the largest entry
_OPTIONAL = ("linear", "offset", "stream")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def gram_product(errors: Tensor, gram: Tensor) -> Tensor:
    """Errors times the Gram matrix: (g, r, d) @ (g, d, d) -> (g, r, d), in the errors' dtype.

    The rows are padded to a multiple of 8. Matrix products treat whole micro-tiles alike, so a row
    gives the same bits whatever rows stand beside it and however many threads there are; a lone row
    would go through a matrix-vector routine with another order of summation.
    """
    rows = errors.shape[1]
    if rows % 8 == 0:
        return torch.bmm(errors, gram)
    return torch.bmm(pad(errors, (0, 0, 0, -rows % 8)), gram)[:, :rows]


@dataclass(frozen=True, eq=False)
class RoundingProblem:
    """Which level should every weight of a layer take?

    The energy of a row is ``e' G e + l' e + c`` with ``e = scale * (levels - target)``, the change
    of the row's weights; its unit is output^2 per position. All rows of a group share one Gram
    matrix G. Tensors are converted on construction: floats to float64, levels to int16.

    Args:
        gram: (g, d, d), symmetric; mean of x x' over samples and positions (or a task Hessian,
            which may be indefinite). What rounding left of asymmetry, at most 1e-9 of the largest
            entry, is averaged away.
        target: (g, r, d), the unrounded weights in levels: weight / scale + zero_point.
        scale: (g, r, 1) or (g, r, d), grid step in weight units, positive.
        low: (g, r, d), smallest level allowed. Up/down problems have ``high - low <= 1``.
        high: (g, r, d), largest level allowed; equal to `low` where a weight is fixed.
        linear: (g, r, d), linear term in e; None means none.
        offset: (g, r), constant term; None means zero.
        stream: (g, r) int64, which stream of random numbers a row draws from. None numbers the
            rows; parts of a problem keep the numbers of the whole, so they get the same bits.
        meta: JSON-serialisable notes that travel with the problem (layer name, bits, ...).

    Raises:
        ProblemError: wrong shape or dtype, not finite, not symmetric, low > high, scale <= 0.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 20 (local loss) and eq 13 (g = r = 1).
    """

    gram: Tensor
    target: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    linear: Tensor | None = None
    # These two are filled in where they are not given.
    offset: Tensor = None  # pyright: ignore[reportAssignmentType]
    stream: Tensor = None  # pyright: ignore[reportAssignmentType]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("gram", "target", "scale", "linear", "offset"):
            self._convert(name, torch.float64)
        for name in ("low", "high"):
            self._convert(name, torch.int16)
        self._convert("stream", torch.int64)
        if self.target.ndim != 3 or 0 in self.target.shape:
            raise ProblemError(
                f"target has shape {tuple(self.target.shape)}; give (g, r, d), each at least 1."
            )
        if self.offset is None:
            object.__setattr__(self, "offset", self.target.new_zeros(self.target.shape[:2]))
        if self.stream is None:
            g, r = self.target.shape[:2]
            numbers = torch.arange(g * r, device=self.target.device).reshape(g, r)
            object.__setattr__(self, "stream", numbers)
        self._check_shapes()
        self._check_values()
        self._symmetrise()

    def _convert(self, name: str, dtype: torch.dtype) -> None:
        value = getattr(self, name)
        if value is None and name in _OPTIONAL:
            return
        if not isinstance(value, Tensor):
            raise ProblemError(f"{name} is a {type(value).__name__}; give a torch.Tensor.")
        wants_float = dtype.is_floating_point
        if not (value.is_floating_point() if wants_float else value.dtype in _INTEGERS):
            kind = "real floating point" if wants_float else "signed integer"
            raise ProblemError(f"{name} has dtype {value.dtype}; give a {kind} tensor.")
        if dtype == torch.int16 and bool((value != value.to(dtype)).any()):
            raise ProblemError(f"{name} holds levels beyond 16 bits; give -32768 to 32767.")
        object.__setattr__(self, name, value.detach().to(dtype))

    def _check_shapes(self) -> None:
        g, r, d = self.target.shape
        allowed = {
            "gram": [(g, d, d)],
            "scale": [(g, r, 1), (g, r, d)],
            "low": [(g, r, d)],
            "high": [(g, r, d)],
            "linear": [(g, r, d)],
            "offset": [(g, r)],
            "stream": [(g, r)],
        }
        for name, shapes in allowed.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) not in shapes:
                wanted = " or ".join(map(str, dict.fromkeys(shapes)))
                raise ProblemError(
                    f"{name} has shape {tuple(value.shape)}; with target {(g, r, d)} give {wanted}."
                )
            if value.device != self.target.device:
                raise ProblemError(
                    f"{name} lies on {value.device} and target on {self.target.device}; "
                    "move all tensors to one device."
                )

    def _check_values(self) -> None:
        for name in ("gram", "target", "scale", "linear", "offset"):
            value = getattr(self, name)
            if value is not None and not bool(torch.isfinite(value).all()):
                raise ProblemError(f"{name} holds NaN or infinity; give finite numbers only.")
        if not bool((self.scale > 0).all()):
            raise ProblemError("scale holds zero or negative steps; give positive ones.")
        if bool((self.low > self.high).any()):
            raise ProblemError("low exceeds high somewhere; give low <= high for every weight.")
        self._check_size()

    def _check_size(self) -> None:
        """Energies, and what is computed on the way to them, have to stay far within float64."""
        largest = float(self._reach().max())
        if not largest < _LARGEST:
            raise ProblemError(
                f"energies may reach {largest:.1g}; keep them below {_LARGEST:g} by smaller steps, "
                "targets nearer to their levels, or a Gram matrix scaled down."
            )

    def _reach(self) -> Tensor:
        """(g, r) what no energy exceeds, nor what is computed on the way to it."""
        farthest = torch.maximum((self.low - self.target).abs(), (self.high - self.target).abs())
        error = (self.scale * farthest).amax(dim=2)
        largest = self.d**2 * self.gram.abs().amax(dim=(1, 2)).unsqueeze(1) * error * error
        if self.linear is not None:
            largest = largest + self.d * self.linear.abs().amax(dim=2) * error
        return largest + self.offset.abs()

    def _symmetrise(self) -> None:
        asymmetry = float((self.gram - self.gram.mT).abs().max())
        if asymmetry > _SYMMETRY_TOLERANCE * float(self.gram.abs().max()):
            raise ProblemError(
                f"gram is not symmetric (largest difference {asymmetry:.3g}); give (G + G')/2."
            )
        if asymmetry > 0:  # energies would see both triangles, factorisations only the lower one
            object.__setattr__(self, "gram", self.gram / 2 + self.gram.mT / 2)

    @property
    def g(self) -> int:
        """Groups."""
        return self.target.shape[0]

    @property
    def r(self) -> int:
        """Rows per group."""
        return self.target.shape[1]

    @property
    def d(self) -> int:
        """Columns."""
        return self.target.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.target.device

    @property
    def is_binary(self) -> bool:
        """Does every weight have at most two levels?"""
        return bool((self.high.int() - self.low.int() <= 1).all())

    @cached_property
    def diagonal(self) -> Tensor:
        """(g, 1, d) diagonal of the Gram matrix."""
        return self.gram.diagonal(dim1=1, dim2=2).unsqueeze(1)

    @cached_property
    def unit(self) -> Tensor:
        """(g, r, 1) energy scale of a row: mean over columns of scale^2 * |G_jj|.

        What moving one weight by one level costs, the other weights aside. Zero for a row that
        nothing flows into. Regularisers are given in this unit.
        """
        return (self.scale**2 * self.diagonal.abs()).mean(dim=2, keepdim=True)

    @property
    def positive_unit(self) -> Tensor:
        """(g, r, 1) `unit`, and 1 where that is zero: what energies can be divided by."""
        return torch.where(self.unit > 0, self.unit, 1.0)

    def normalised(self) -> RoundingProblem:
        """The same problem with each row's energy divided by its unit (by 1 where that is zero).

        Same levels, same order of energies; all numbers near 1, so that a solver may compute in
        float32 whatever the scale of weights and inputs. Where a linear term dwarfs the unit beyond
        all measure, the row is divided by what keeps its energies those of a legal problem.
        """
        positive = self.positive_unit.maximum(_SMALLEST_SHARE * self._reach().unsqueeze(2))
        shared = self.diagonal.abs().mean(dim=2, keepdim=True)
        shared = torch.where(shared > 0, shared, 1.0)
        # With e' = grow * e and G' = G / shared, e' G' e' is e G e / unit.
        grow = (shared / positive).sqrt()
        linear = None if self.linear is None else self.linear / (positive * grow)
        return replace(
            self,
            gram=self.gram / shared,
            scale=self.scale * grow,
            linear=linear,
            offset=self.offset / positive.squeeze(2),
        )

    def errors(self, levels: Tensor) -> Tensor:
        """(g, r, d) e = scale * (levels - target), in weight units."""
        return self.scale * (levels.to(torch.float64) - self.target)

    def energy(self, levels: Tensor) -> Tensor:
        """(g, r) float64 energy of levels (g, r, d): e' G e + l' e + c."""
        errors = self.errors(levels)
        slope = gram_product(errors, self.gram)
        if self.linear is not None:
            slope = slope + self.linear
        return (slope * errors).sum(dim=2) + self.offset

    def gradient(self, levels: Tensor) -> Tensor:
        """(g, r, d) float64 derivative of the energy by e: 2 G e + l."""
        slope = 2 * gram_product(self.errors(levels), self.gram)
        return slope if self.linear is None else slope + self.linear

    def flip_gain(self, levels: Tensor, step: Tensor | None = None) -> Tensor:
        """(g, r, d) change of energy when one weight alone moves by `step` levels.

        Args:
            levels: (g, r, d).
            step: (g, r, d) levels to move by; None flips every weight of an up/down problem to its
                other level (0 where it is fixed).

        Raises:
            ProblemError: no step given and the problem is not binary.
        """
        if step is None:
            if not self.is_binary:
                raise ProblemError("a flip needs two levels a weight; give the step to move by.")
            step = self.low + self.high - 2 * levels.to(torch.int16)
        move = self.scale * step
        return move * (self.gradient(levels) + move * self.diagonal)

    def nearest(self) -> Tensor:
        """(g, r, d) int16 level nearest to the target within [low, high], halves to even."""
        rounded = torch.maximum(torch.minimum(self.target.round(), self.high), self.low)
        return rounded.to(torch.int16)

    def allows(self, levels: Tensor) -> bool:
        """Are these levels integers (g, r, d) within [low, high]?"""
        return (
            not levels.is_floating_point()
            and levels.shape == self.target.shape
            and bool(((levels >= self.low) & (levels <= self.high)).all())
        )

    def part(self, groups: slice = slice(None), rows: slice = slice(None)) -> RoundingProblem:
        """The problem of some groups and rows alone; it is solved to the same bits as within."""
        cut = {
            f.name: value[groups] if f.name == "gram" else value[groups, rows]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **cut)

    def row(self, group: int = 0, row: int = 0) -> RoundingProblem:
        """The problem of one row alone.

        Raises:
            ProblemError: there is no such row.
        """
        if not (0 <= group < self.g and 0 <= row < self.r):
            raise ProblemError(
                f"there is no (group, row) = {(group, row)}; "
                f"groups are 0 to {self.g - 1}, rows 0 to {self.r - 1}."
            )
        return self.part(slice(group, group + 1), slice(row, row + 1))

    def to(self, device: torch.device | str) -> RoundingProblem:
        """The same problem on another device."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def to_qubo(self, group: int = 0, row: int = 0) -> tuple[Tensor, float, Tensor]:
        """One row as a QUBO: energy = x' Q x + offset over the free columns, x_j = 1 for `high`.

        Returns:
            Q: (n, n) float64, symmetric, linear terms on the diagonal (x^2 = x).
            offset: float, the energy of all x = 0.
            columns: (n,) int64, which column each variable stands for; fixed ones are left out.

        Raises:
            ProblemError: the problem is not binary, or there is no such row.
        """
        if not self.is_binary:
            raise ProblemError("a QUBO needs two levels a weight; build the problem with up/down.")
        one = self.row(group, row)
        columns = torch.nonzero(one.high[0, 0] > one.low[0, 0]).flatten()
        step = one.scale.expand_as(one.target)[0, 0, columns]
        quadratic = torch.outer(step, step) * one.gram[0][columns][:, columns]
        quadratic += torch.diag(step * one.gradient(one.low)[0, 0, columns])
        return quadratic, float(one.energy(one.low)), columns

    def solution(self, levels: Tensor, lower_bound: Tensor | None = None, **stats: Any) -> Solution:
        """These levels with their energy computed here: a solver cannot misreport it.

        Raises:
            ProblemError: levels of wrong shape or dtype, or outside [low, high].
        """
        if not self.allows(levels):
            raise ProblemError(
                f"levels {tuple(levels.shape)} {levels.dtype} are not integers of shape "
                f"{tuple(self.target.shape)} within [low, high]."
            )
        return Solution(levels.to(torch.int16), self.energy(levels), lower_bound, stats)

    def save(self, path: str | Path) -> None:
        """Write the `.npz` exchange file: one array a field, `meta` as a JSON string."""
        arrays = {
            f.name: value.cpu().numpy()
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        save_npz(path, arrays | {"meta": np.array(json.dumps(dict(self.meta)))})

    @classmethod
    def load(cls, path: str | Path) -> RoundingProblem:
        """Read an exchange file.

        Raises:
            ProblemError: not a readable `.npz`, a field missing or of a wrong kind, bad values.
        """
        arrays = load_npz(path, required=("gram", "target", "scale", "low", "high"))
        meta = json_from(path, arrays.pop("meta", None), "meta")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(arrays) - known):
            raise ProblemError(f"{path}: unknown arrays {unknown}; known are {sorted(known)}.")
        tensors = {name: tensor_from(path, name, array) for name, array in arrays.items()}
        try:
            return cls(**tensors, meta=meta)
        except ProblemError as error:
            raise ProblemError(f"{path}: {error}") from None
