"""Scale and rounding together: scales refitted in closed form, levels found again, in turns.

For given levels the energy is a parabola in the scales; for given scales it is a rounding problem
in the levels. Neither half step raises it.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qubo_rounding.grid import Granularity, Grid
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.local_loss import Candidates
from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.composites import BestOf, FirstThatAccepts, Given
from qubo_rounding.solvers.solver import Solver


def round_with_scales(
    problem: RoundingProblem,
    grid: Grid,
    weight: Tensor,
    solver: Solver,
    settings: LayerSettings,
    rounds: int,
    *,
    seed: int = 0,
) -> tuple[RoundingProblem, Grid, Solution]:
    """A layer's problem on a better grid, that grid, and levels for both with less energy.

    The solver rounds on the given grid. Every round then refits the scales to the levels found and
    has the solver go on from these levels on the new grid. The energy of the layer never rises,
    nor, unless rows share a scale, that of any row. It ends early when nothing changes.

    On a new grid the targets have moved. An up/down weight may then go to its two neighbours or,
    where its level is neither of them, stay or go one level towards them. So the levels at hand
    remain allowed, and a weight keeps the two choices that every solver can treat.

    Args:
        problem, grid: from `layer_problem`, with these settings; left untouched.
        weight: (g, r, d) float weights.
        solver: goes on from the levels at hand where it or its members have a `start`, and solves
            anew where not; every row keeps the better of old and new levels.
        settings: whose granularity and candidates the problem was posed with.
        rounds: how many at most; 0 is the solver alone.
        seed: of the first solution; round k draws with seed + k.

    Returns:
        The problem, grid and solution of the last round. A lower bound holds for that grid. The
        stats are the solver's last ones, with `scale_refits`, the rounds made, and
        `energy_before_refits`, the sum over rows on the given grid, where rounds are wanted.

    Raises:
        RefusedError: the solver refuses the problem, as given or on a new grid.
        ValueError: rounds is negative, or the problem lies on another grid.

    Source: Zhang et al. 2024 (COMQ), arXiv 2403.07134, and Zhang, Saab 2025 (Beacon), 2508.20293,
        who alternate scales and single levels; Lloyd 1982, doi 10.1109/TIT.1982.1056489.
    """
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; give 0 for the solver alone, or how many at most.")
    solution = solver.solve(problem, seed=seed)
    if rounds == 0:
        return problem, grid, solution
    before, made = float(solution.energy.sum()), 0
    for number in range(1, rounds + 1):
        levels = solution.levels
        refitted = refit_scale(problem, grid, weight, levels, settings.granularity)
        if torch.equal(refitted.scale, grid.scale):
            break
        grid, made = refitted, number
        low, high = allowed_levels(grid, weight, levels, settings.candidates)
        problem = replace(on_grid(problem, grid, weight), low=low, high=high)
        found = going_on(solver, levels).solve(problem, seed=seed + number)
        solution = _better(problem, levels, found)
        if torch.equal(solution.levels, levels):
            break
    stats = {**solution.stats, "scale_refits": made, "energy_before_refits": before}
    return problem, grid, replace(solution, stats=stats)


def refit_scale(
    problem: RoundingProblem,
    grid: Grid,
    weight: Tensor,
    levels: Tensor,
    granularity: Granularity = "channel",
) -> Grid:
    """The grid whose scales give these levels the least energy; zero points stay as they are.

    With w a row's weights, s_b the scale of its block b of columns, and v_b = levels - zero_point
    within these columns and 0 elsewhere, the change of the weights is e = sum_b s_b v_b - w, and

        e' G e + l' e + c = s' A s - 2 y' s + const,
        A_bc = v_b' G v_c,   y_b = v_b' p,   p = G w - l / 2,

    least where A s = y. One block a row gives s = v' p / v' G v, one for the layer the ratio of
    their sums over rows. For inputs x_q of a rounded network p = E[x_q x'] w (see local_loss.py),
    and s is the coefficient of regression of the wanted output w' x on v' x_q.

    A system that leaves scales open moves them as little as it can. Blocks whose scale would not be
    positive keep the old one while the others are solved for; so does a row, or a layer with one
    scale, whose energy would not fall.

    Args:
        problem: the quadratic form; its target and scale are those of the grid.
        grid: scales now, one for each row or each weight.
        weight: (g, r, d) float weights.
        levels: (g, r, d) integers on the grid.
        granularity: which weights share a scale, as in `fit_grid`. With blocks of columns, b of
            them, it holds some arrays of shape (g, r, b, b).

    Raises:
        ValueError: the problem lies on another grid.

    Source: Zhang, Saab 2025 (Beacon), arXiv 2508.20293, and Zhang et al. 2024 (COMQ), 2403.07134,
        for one scale; several are their least squares.
    """
    if not torch.equal(problem.scale, grid.scale):
        raise ValueError("The problem lies on another grid; give the one it was made with.")
    d = problem.d
    width = d if isinstance(granularity, str) else min(granularity, d)
    # In units of the old scales: v_b times these, and factors around 1 to be found.
    rounded = grid.dequantize(levels)
    products = _block_products(rounded, problem.gram, width)
    pull = gram_product(weight.double(), problem.gram)
    if problem.linear is not None:
        pull = pull - problem.linear / 2
    wanted = _block_sums(rounded * pull, width)
    if granularity == "tensor":
        products, wanted = (t.sum((0, 1), keepdim=True) for t in (products, wanted))
    factor = _positive_solution(products, wanted)
    if not isinstance(granularity, str):
        factor = factor.repeat_interleave(width, dim=2)[..., :d]
    return _where_better(problem, grid, weight, levels, factor)


def _positive_solution(products: Tensor, wanted: Tensor) -> Tensor:
    """(g, r, b) factors that solve products @ factors = wanted; 1 where one came out negative."""
    free = torch.ones_like(wanted, dtype=torch.bool)
    while True:
        residual = free * (wanted - products.sum(3))
        system = products * free.unsqueeze(2) * free.unsqueeze(3)
        change = (torch.linalg.pinv(system, hermitian=True) @ residual.unsqueeze(3)).squeeze(3)
        refused = free & (change <= -1)
        if not bool(refused.any()):
            return 1 + change
        free = free & ~refused


def _where_better(
    problem: RoundingProblem, grid: Grid, weight: Tensor, levels: Tensor, factor: Tensor
) -> Grid:
    """The grid with its scales times the factors (g | 1, r | 1, 1 | d) where that lowers energy.

    Closed forms are exact in real numbers only, and minima only where the Gram is not indefinite.
    """
    scale = grid.scale * factor
    usable = torch.isfinite(scale) & (scale > 0)
    refitted = replace(grid, scale=scale.where(usable, grid.scale))
    change = on_grid(problem, refitted, weight).energy(levels) - problem.energy(levels)
    change = change.unsqueeze(2)
    if factor.shape[:2] != change.shape[:2]:  # rows share the scale, and can only move together
        change = change.sum((0, 1), keepdim=True)
    return replace(grid, scale=refitted.scale.where(change < 0, grid.scale))


def on_grid(problem: RoundingProblem, grid: Grid, weight: Tensor) -> RoundingProblem:
    """The same quadratic form in the weights, with the targets and scales of another grid."""
    return replace(problem, target=grid.target(weight), scale=grid.scale)


def allowed_levels(
    grid: Grid, weight: Tensor, levels: Tensor, candidates: Candidates
) -> tuple[Tensor, Tensor]:
    """(low, high): the grid's candidates; for up/down two of which one is the level at hand."""
    if candidates == "free":
        return grid.free(weight)
    low, high = grid.up_down(weight)
    below, above = levels < low, levels > high
    beside = below | above
    low = torch.where(beside, levels - above.to(levels.dtype), low)
    return low, torch.where(beside, levels + below.to(levels.dtype), high)


def going_on(solver: Solver, levels: Tensor) -> Solver:
    """The same solver, beginning with these levels where it or its members have a `start`."""
    if isinstance(solver, (BestOf, FirstThatAccepts)):
        return replace(solver, solvers=tuple(going_on(s, levels) for s in solver.solvers))
    if is_dataclass(solver) and any(field.name == "start" for field in fields(solver)):
        return replace(solver, start=Given(levels))
    return solver


def _better(problem: RoundingProblem, levels: Tensor, found: Solution) -> Solution:
    """The solution found, with the levels at hand in the rows where it is not better."""
    best = BestLevels(problem, levels, problem.energy(levels))
    best.offer(found.levels)
    return problem.solution(best.levels, found.lower_bound, **found.stats)


def _block_products(rounded: Tensor, gram: Tensor, width: int) -> Tensor:
    """(g, r, b, b) u_b' G u_c for blocks of `width` columns of the rows u of (g, r, d)."""
    blocks = [slice(at, at + width) for at in range(0, gram.shape[2], width)]
    slopes = (gram_product(rounded[..., at], gram[:, at]) for at in blocks)
    return torch.stack([_block_sums(slope * rounded, width) for slope in slopes], dim=2)


def _block_sums(values: Tensor, width: int) -> Tensor:
    """(g, r, b) sums of (g, r, d) over blocks of `width` columns; the last may be shorter."""
    short = -values.shape[2] % width
    return F.pad(values, (0, short)).unflatten(2, (-1, width)).sum(3)
