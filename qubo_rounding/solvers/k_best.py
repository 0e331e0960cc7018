"""Several roundings of every row side by side, column by column: the K best, or K random ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.row_batches import row_batches
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.gptq import Gptq, nearest_plane
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms
from qubo_rounding.solvers.triangular import Triangular, TriangularSolver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_BLOCK = 64  # columns decided between two products with the errors of all columns before
_NUMBERS_AT_ONCE = 2**24  # errors held of all paths: 64 MiB, and a few times that in passing

Choose = Callable[[int, Tensor], Tensor]
Walk = Callable[[Triangular, Tensor], Tensor]


@dataclass(frozen=True)
class KBest(TriangularSolver):
    """GPTQ that keeps the K best beginnings of every row instead of one.

    A path is a row whose columns are decided down to some place; what it costs so far is a sum of
    squares, ``sum_c (L_cc scale_c)^2 (level_c - wish_c)^2``. Every path is continued by the levels
    nearest to its wish, and of all these the `width` cheapest go on. Costs are damped; of the
    complete paths that of least energy is the result, or GPTQ's where it is better. The arithmetic
    is in float32, so prefer damping to none. Wide rows gain by descent: `Descent(start=KBest())`.

    Args (change often):
        width: paths kept, K; 1 is GPTQ. Time grows in proportion, memory does not.
    Args (with caution):
        children: levels that a path tries for a weight with a wider range than up/down.
        damping, order: as for GPTQ.

    Source: Anderson, Mohan 1984 (M-algorithm); Guo, Nilsson 2006 (K-best sphere decoding);
        arXiv 2602.08376 (OJBKQ) and 2602.05902 (K-CoreQ) for rounding weights.
    """

    width: int = 64
    children: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, width=self.width)
        check_whole(2, children=self.children)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best path of every row; the seed is not used."""
        if self.width == 1:  # Babai's path, which GPTQ takes in float64
            return Gptq(self.damping, self.order).find(problem, seed)

        def cheapest(column: int, costs: Tensor) -> Tensor:
            del column
            costs = costs.flatten(2)
            width = min(self.width, costs.shape[2])
            return costs.topk(width, dim=2, largest=False, sorted=False).indices

        def walk(form: Triangular, stream: Tensor) -> Tensor:
            del stream
            return _walk(form, 1, self.children, cheapest)

        return _improve_nearest_plane(self, problem, self.width, walk)


@dataclass(frozen=True)
class Klein(TriangularSolver):
    """The best of many random roundings that prefer, column by column, what GPTQ would choose.

    Each path rounds column c to a level with probability in proportion to
    ``exp(-(L_cc scale_c)^2 (level - wish_c)^2 / temperature)``, independently of the other paths.
    The path of least energy is the result, or GPTQ's where it is better.

    Args (change often):
        samples: paths drawn for each row.
        temperature: in units of `problem.unit`. At 0.01 most weights go where GPTQ sends them;
            steep layers and few samples want it colder.
    Args (with caution):
        children: levels that a path may choose from for a weight with a wider range than up/down.
        damping, order: as for GPTQ.

    Source: Klein 2000, Finding the closest lattice vector when it's unusually close; Liu, Ling,
        Stehle 2011, arXiv 1003.0064 (randomised Babai).
    """

    samples: int = 64
    temperature: float = 0.01
    children: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, samples=self.samples)
        check_whole(2, children=self.children)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; give a positive number.")

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best path of every row."""

        def walk(form: Triangular, stream: Tensor) -> Tensor:
            numbers = uniforms(stream_keys(seed, stream), self.samples * problem.d)
            draws = torch.from_numpy(numbers).to(stream.device).unflatten(2, (-1, problem.d))

            def drawn(column: int, costs: Tensor) -> Tensor:
                shares = (-costs.double() / self.temperature).softmax(dim=3).cumsum(dim=3)
                # Below the sum of all shares, so no level of share 0 is ever drawn.
                draw = draws[..., column, None] * shares[..., -1:]
                child = (draw >= shares).sum(dim=3)
                return child + costs.shape[3] * torch.arange(self.samples, device=child.device)

            return _walk(form, self.samples, self.children, drawn)

        return _improve_nearest_plane(self, problem, self.samples, walk)


def _improve_nearest_plane(
    solver: TriangularSolver, problem: RoundingProblem, paths: int, walk: Walk
) -> Solution:
    """GPTQ's levels, replaced row by row where `walk` finds better ones."""
    exact = solver.triangular(fix_idle(problem))  # paths are to differ in what matters
    start = problem.solution(exact.restore(nearest_plane(exact)))
    form = exact.single(problem.unit)
    levels = start.levels.clone()
    numbers = paths * max(problem.d, _BLOCK)
    batches = list(row_batches(problem.g, problem.r, numbers, _NUMBERS_AT_ONCE))
    for batch in watched(batches, "paths"):
        part = form.part(*batch)
        levels[batch] = part.restore(walk(part, problem.stream[batch]))
    best = BestLevels(problem, start.levels, start.energy)
    improved = best.offer(levels)
    return problem.solution(
        best.levels, rows_improved=int(improved.sum()), energy_start=float(start.energy.sum())
    )


def _walk(form: Triangular, paths: int, children: int, choose: Choose) -> Tensor:
    """(g, r, d) int16 levels of the path of least energy, columns in rounding order.

    Inside a block of columns an error is passed on at once; all earlier blocks reach it by one
    matrix product. Paths are told apart by their errors alone: (g, r, paths, columns decided).

    Args:
        form: the rows, in float32.
        paths: how many each row starts with.
        children: levels tried for each path and column.
        choose: from a column's number and the costs (g, r, paths, children) of all candidates,
            infinite for those out of range, the numbers (g, r, new paths) of those that go on.
    """
    g, r, d = form.centre.shape
    cost = form.centre.new_zeros(g, r, paths)
    errors = form.centre.new_empty(g, r, paths, 0)
    # Only the first block may be narrow: products of one width give the same bits for any rows.
    for begin in reversed(range(0, d, _BLOCK)):
        end = min(begin + _BLOCK, d)
        passed = gram_product(errors.flatten(1, 2), form.factor[:, end:, begin:end])
        # Column by column what was passed on to it makes room for its error.
        block = passed.unflatten(1, (r, -1))
        ancestor = torch.arange(cost.shape[2], device=cost.device).expand(cost.shape)
        for c in reversed(range(begin, end)):
            weight = form.factor[:, c, c, None] * form.scale[..., c]
            candidates, costs = _candidates(form, c, block[..., c - begin], weight, children)
            costs += cost.unsqueeze(3)
            chosen = choose(c, costs)
            cost = costs.flatten(2).gather(2, chosen)
            error = form.scale[..., c, None] * candidates.flatten(2).gather(2, chosen)
            parent = chosen // children
            ancestor = ancestor.gather(2, parent)
            block = _follow(block, parent)
            block[..., c - begin] = error
            block[..., : c - begin] += error.unsqueeze(3) * form.factor[:, c, None, None, begin:c]
        errors = torch.cat([block, _follow(errors, ancestor)], dim=3)
    # Errors from the target tell what of each cost is damping alone.
    apart = errors + (form.scale * (form.centre - form.target)).unsqueeze(2)
    energy = cost - form.added * apart.square().sum(dim=3)
    best = energy.argmin(dim=2, keepdim=True)
    levels = (_follow(errors, best).squeeze(2) / form.scale + form.centre).round()
    return torch.maximum(torch.minimum(levels, form.high), form.low).to(torch.int16)


def _candidates(
    form: Triangular, c: int, passed: Tensor, weight: Tensor, children: int
) -> tuple[Tensor, Tensor]:
    """(g, r, paths, children) nearest levels, measured from the centre, and what each costs."""
    centre, low, high = (t[..., c, None] for t in (form.centre, form.low, form.high))
    wish = centre - passed / weight.unsqueeze(2)
    first = torch.minimum((wish - children / 2).ceil(), high - (children - 1)).maximum(low)
    levels = first.unsqueeze(3) + torch.arange(children, device=wish.device)
    costs = (weight[..., None, None] * (levels - wish.unsqueeze(3))).square()
    costs.masked_fill_(levels > high.unsqueeze(3), torch.inf)
    return levels - centre.unsqueeze(3), costs


def _follow(values: Tensor, parent: Tensor) -> Tensor:
    """Values (g, r, paths, n) of the chosen parents (g, r, new paths)."""
    g, r, paths, n = values.shape
    first = paths * torch.arange(g * r, device=values.device).view(g, r, 1)
    # Much faster than a gather with an index for each of the n values.
    return values.flatten(0, 2)[(first + parent).flatten()].view(*parent.shape, n)
