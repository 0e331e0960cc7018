"""Rows of rounding problems as dimod models, dimod models as rounding problems, samples as levels.

A row becomes a binary quadratic model (`to_bqm`) or, with wider ranges as they are, a model of
integers (`to_quadratic_model`); `levels_from_sample` reads the samples of both. Any binary
quadratic model becomes a problem of one row (`from_bqm`); `as_sampleset` and `as_levels` carry
levels and samples across.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import dimod
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.problem import ProblemError, RoundingProblem

Encoding = Literal["binary", "unary"]


class Bit(NamedTuple):
    """Name of one of the variables that a weight with more than two levels is made of.

    Args:
        column: the weight.
        number: of the variable among those of its weight, from 0.
        steps: by how many levels a 1 raises the weight.
    """

    column: int
    number: int
    steps: int


def check_encoding(encoding: str) -> None:
    """Raise a ValueError for an unknown encoding."""
    if encoding not in get_args(Encoding):
        raise ValueError(f"encoding is {encoding!r}; give 'binary' or 'unary'.")


def bit_steps(span: int, encoding: Encoding = "binary") -> list[int]:
    """By how many levels each bit raises a weight; sums of them are exactly 0, 1, ..., span.

    "binary" doubles, and the last bit holds what is left: 1, 2, 4, 3 for a span of 10. A few levels
    have two writings, none lies outside. "unary" is `span` ones: many variables, but the next level
    is always one flip away, where binary may need all bits to change (from 7 to 8).

    Args:
        span: high - low, at least 1.
        encoding: "binary" or "unary".

    Raises:
        ValueError: an unknown encoding.

    Source: Karimi, Ronagh 2017, arXiv 1706.01945 (bounded-coefficient encodings).
    """
    check_encoding(encoding)
    if encoding == "unary":
        return [1] * span
    doubling = [2**k for k in range(span.bit_length() - 1)]
    return [*doubling, span - sum(doubling)]


def count_variables(problem: RoundingProblem, encoding: Encoding = "binary") -> Tensor:
    """(g, r) int64, how many variables `to_bqm` makes of each row."""
    check_encoding(encoding)
    span = problem.high.int() - problem.low.int()
    # The binary exponent of a whole number is its number of binary digits.
    bits = span if encoding == "unary" else torch.frexp(span.float()).exponent
    return bits.sum(dim=2)


def to_bqm(
    problem: RoundingProblem, group: int = 0, row: int = 0, encoding: Encoding = "binary"
) -> dimod.BinaryQuadraticModel:
    """One row as a binary quadratic model; a sample's energy is the row's energy, offset included.

    A weight with two levels is one variable, named by its column: 1 stands for `high`, 0 for `low`.
    A weight with more is several, each named by a `Bit`. Fixed weights have none.

    Args:
        problem: any rounding problem.
        group, row: which row of it.
        encoding: of weights with more than two levels, see `bit_steps`.

    Raises:
        ProblemError: there is no such row.
        ValueError: an unknown encoding.
    """
    up_down, names = _expanded(problem.row(group, row), encoding)
    quadratic, offset, variables = up_down.to_qubo()
    bqm = dimod.BinaryQuadraticModel(quadratic.cpu().numpy(), "BINARY")
    bqm.offset += offset
    bqm.relabel_variables({k: names[v] for k, v in enumerate(variables.tolist())})
    return bqm


def to_quadratic_model(
    problem: RoundingProblem, group: int = 0, row: int = 0
) -> dimod.QuadraticModel:
    """One row as a quadratic model of integers; a sample's energy is the row's energy.

    Every weight that is not fixed is an INTEGER variable, named by its column: how many levels it
    stands above `low`, from 0 to high - low.

    Args:
        problem: any rounding problem.
        group, row: which row of it.

    Raises:
        ProblemError: there is no such row.
    """
    one = problem.row(group, row)
    span = (one.high.int() - one.low.int())[0, 0].tolist()
    curvature = (one.scale**2 * one.diagonal)[0, 0].tolist()
    one_step = torch.where(one.high > one.low, one.low + 1, one.low)
    model = dimod.QuadraticModel.from_bqm(to_bqm(replace(one, high=one_step)))
    for column in torch.nonzero(one.high[0, 0] > one.low[0, 0]).flatten().tolist():
        model.change_vartype("INTEGER", column)
        model.set_upper_bound(column, span[column])
        # For bits the curvature stood in the linear term, as x^2 = x.
        model.add_linear(column, -curvature[column])
        model.add_quadratic(column, column, curvature[column])
    return model


def levels_from_sample(
    problem: RoundingProblem, sample: Mapping[Any, Any], group: int = 0, row: int = 0
) -> Tensor:
    """(d,) int16 levels of a sample of `to_bqm` or `to_quadratic_model`, in whatever encoding.

    Raises:
        ProblemError: there is no such row; a weight that is not fixed is not told or only partly,
            or there is no such weight; values that no level belongs to, as spins have.
    """
    one = problem.row(group, row)
    low, span = one.low[0, 0].long().cpu(), (one.high.int() - one.low.int())[0, 0].cpu()
    bits = [name if isinstance(name, tuple) else (name, 0, 1) for name in sample]
    if strange := [bit for bit in bits if bit[0] not in range(problem.d)]:
        raise ProblemError(
            f"the sample tells weight {strange[0][0]!r}; the row has 0 to {problem.d - 1}."
        )
    values = [float(value) for value in sample.values()]
    if broken := [value for value in values if not value.is_integer()]:
        raise ProblemError(f"the sample holds {broken[0]}; give whole numbers, rounded by you.")
    columns = torch.tensor([column for column, _, _ in bits], dtype=torch.long)
    raised = [steps * int(value) for (_, _, steps), value in zip(bits, values, strict=True)]
    levels = low.index_add(0, columns, torch.tensor(raised, dtype=torch.long))
    if min(values, default=0) < 0 or bool((levels > low + span).any()):
        raise ProblemError(
            "the sample leaves [low, high]; give a sample of to_bqm or to_quadratic_model of this "
            "row, with values 0 and 1 (not spins) or levels above low."
        )
    # Together a weight's bits reach its whole span, as an integer variable does.
    reach = [name[2] if isinstance(name, tuple) else int(span[name]) for name in sample]
    told = torch.zeros_like(low).index_add(0, columns, torch.tensor(reach, dtype=torch.long))
    if bool((told != span).any()):
        missing = int(torch.nonzero(told != span)[0])
        raise ProblemError(f"the sample does not tell weight {missing}; give all variables.")
    return levels.to(device=problem.device, dtype=torch.int16)


def from_bqm(bqm: dimod.BinaryQuadraticModel) -> RoundingProblem:
    """The model as a problem with g = r = 1: energy(levels) is the energy of the sample they mean.

    Columns are the variables in the order of ``bqm.variables``; level 1 is 1, level 0 is 0 or, of a
    spin, -1. With scale 1 and target 1/2, e = x - 1/2 is half a spin, so e^2 = 1/4 whatever the
    sample: the diagonal of the Gram matrix is a mere constant, and free to choose. It is the least
    uniform one that makes the matrix positive semidefinite. So solvers that factor it accept it,
    and `unit`, in which energies are told, fits the couplings. A model without variables
    becomes one fixed column, as a problem has at least one.

    Args:
        bqm: dense or sparse, BINARY or SPIN, with any names. The problem is dense: it takes
            8 n^2 bytes and the eigenvalues of an n x n matrix.

    Raises:
        ProblemError: a bias is not finite.
    """
    couplings, linear, offset = _in_half_spins(bqm)
    d = len(linear)
    problem = RoundingProblem(
        couplings[None],
        target=torch.full((1, 1, d), 0.5, dtype=torch.float64),
        scale=torch.ones(1, 1, 1, dtype=torch.float64),
        low=torch.zeros(1, 1, d, dtype=torch.int16),
        high=torch.full((1, 1, d), min(bqm.num_variables, 1), dtype=torch.int16),
        linear=linear[None, None],
        offset=offset[None, None],
    )
    shift = -torch.linalg.eigvalsh(problem.gram)[0, 0]
    return replace(
        problem,
        gram=problem.gram + shift * torch.eye(d, dtype=torch.float64),
        offset=problem.offset - shift * d / 4,
    )


def _in_half_spins(bqm: dimod.BinaryQuadraticModel) -> tuple[Tensor, Tensor, Tensor]:
    """C (d, d), l (d,) and c of the model's energy e' C e + l' e + c, e = -1/2 or 1/2; d >= 1."""
    n = bqm.num_variables
    d = max(n, 1)
    vectors = bqm.to_numpy_vectors(list(bqm.variables))
    rows, columns, values = vectors.quadratic
    pairs = torch.zeros(d, d, dtype=torch.float64)
    pairs[rows, columns] = torch.from_numpy(values).double()
    pairs = pairs + pairs.T
    biases = torch.zeros(d, dtype=torch.float64)
    biases[:n] = torch.from_numpy(vectors.linear_biases)
    # A variable's value is centre + step * e.
    centre, step = (0.0, 2.0) if bqm.vartype is dimod.SPIN else (0.5, 1.0)
    linear = step * (biases + centre * pairs.sum(dim=1))
    offset = float(vectors.offset) + centre * biases.sum() + centre**2 * pairs.sum() / 2
    return step**2 / 2 * pairs, linear, offset


def as_sampleset(levels: Tensor, bqm: dimod.BinaryQuadraticModel) -> dimod.SampleSet:
    """Levels (1, r, d) of `from_bqm(bqm)` as r samples of the model, with its energies."""
    values = levels[0, :, : bqm.num_variables].cpu().numpy().astype(np.int8)
    if bqm.vartype is dimod.SPIN:
        values = 2 * values - 1
    return dimod.SampleSet.from_samples_bqm((values, list(bqm.variables)), bqm)


def as_levels(samples: Any, bqm: dimod.BinaryQuadraticModel) -> Tensor:
    """(1, r, d) int16 levels of r samples of the model, for `from_bqm(bqm)`.

    Args:
        samples: whatever `dimod.as_samples` takes: a sample, several, a sample set.
        bqm: the model that they are samples of.

    Raises:
        ProblemError: a variable that is not there, or a value that the model does not allow.
    """
    values, names = dimod.as_samples(samples)
    place = {name: k for k, name in enumerate(names)}
    missing = [name for name in bqm.variables if name not in place]
    if missing:
        raise ProblemError(f"the samples do not tell {missing[0]!r}; give all variables.")
    values = np.asarray(values)[:, [place[name] for name in bqm.variables]]
    zero = -1 if bqm.vartype is dimod.SPIN else 0
    if not np.isin(values, (zero, 1)).all():
        raise ProblemError(
            f"the model is {bqm.vartype.name} and the samples hold values beside {zero} and 1; "
            "change the vartype of one of them."
        )
    levels = np.zeros((1, len(values), max(bqm.num_variables, 1)), np.int16)
    levels[0, :, : bqm.num_variables] = values == 1
    return torch.from_numpy(levels)


def _expanded(row: RoundingProblem, encoding: Encoding) -> tuple[RoundingProblem, list[int | Bit]]:
    """The same energies as an up/down problem, a column a bit, and the bits' names.

    The error of weight j is e_j = scale_j (low_j + sum of steps_k x_k - target_j): the sum of its
    bits' errors, when the first bit takes the whole of target - low for its target.
    """
    spans = (row.high.int() - row.low.int())[0, 0].tolist()
    bits = [
        Bit(column, number, steps)
        for column, span in enumerate(spans)
        for number, steps in enumerate(bit_steps(max(span, 1), encoding))
    ]
    columns, numbers, steps = torch.tensor(bits, device=row.device).T
    scale = row.scale.expand_as(row.target)
    target = torch.where(numbers == 0, (row.target - row.low)[..., columns], 0.0)
    up_down = replace(
        row,
        gram=row.gram[:, columns][:, :, columns],
        target=target,
        scale=scale[..., columns] * steps,
        low=torch.zeros_like(target, dtype=torch.int16),
        high=(row.high > row.low)[..., columns].to(torch.int16),
        linear=None if row.linear is None else row.linear[..., columns],
    )
    return up_down, [bit if spans[bit.column] > 1 else bit.column for bit in bits]
