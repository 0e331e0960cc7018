"""Levels improved behind the activation function by a solver: module one finishing module two."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from qubo_rounding.activation_loss import RowData, row_problems
from qubo_rounding.following import Following
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.layer_objective import PatchObjective
from qubo_rounding.scale_refit import going_on
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Annealing, Solver
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class ActivationFinish:
    """A solver on the quadratic model of each row's loss behind the activation function.

    It begins with the levels at hand and keeps, row by row, what has the lower true loss on the
    windows that the model is made from.

    Args:
        solver: one that takes a start begins at the levels at hand.
        positions: of each sample that windows are drawn from.
        rounds: times that the model is made anew at the levels found.
    """

    solver: Solver = field(default_factory=lambda: Annealing(sweeps=200, reads=1))
    positions: int = 16
    rounds: int = 2

    def __post_init__(self) -> None:
        check_whole(1, positions=self.positions, rounds=self.rounds)

    def improve(
        self,
        objective: PatchObjective,
        following: Following,
        problem: RoundingProblem,
        weight: Tensor,
        bias: Tensor,
        solution: Solution,
        shift: Tensor,
        refit: bool,
        seed: int,
    ) -> tuple[Solution, Tensor]:
        """The solution and the bias shift after all rounds; energies stay those of the problem.

        Args:
            objective: holds the windows, with float outputs before the activation function.
            following: the activation function.
            problem: the layer's.
            weight, bias: (g, r, d) and (g, r), unrounded.
            solution, shift: at hand; shift (g, r).
            refit: may the bias be refitted?
            seed: of the solver.
        """
        levels, shift = solution.levels.clone(), shift.clone()
        before = after = 0.0
        for group, (inputs, outputs, added) in enumerate(objective.windows()):
            channels = slice(group * problem.r, (group + 1) * problem.r)
            others = added + bias[group].float()
            data = RowData(inputs, outputs, others, following.of(channels))
            own = problem.part(groups=slice(group, group + 1))
            row = _Rows(data, own, weight[group].double(), refit)
            first = row.losses(levels[group], shift[group])
            for number in range(self.rounds):
                self._round(row, levels[group], shift[group], seed + number)
            before += float(first.sum())
            after += float(row.losses(levels[group], shift[group]).sum())
        stats = dict(solution.stats) | {"loss_before_finish": before, "loss": after}
        return problem.solution(levels, None, **stats), shift

    def _round(self, row: _Rows, levels: Tensor, shift: Tensor, seed: int) -> None:
        """One model of all rows of a group, solved; levels (r, d) and shift (r,) are improved."""
        parts = row_problems(row.data, row.problem, row.weight, shift, levels, row.refit)
        found, moved = levels.clone(), shift.clone()
        for rows, problem, constant, slope in parts:
            solver = going_on(self.solver, levels[rows, None])
            found[rows] = solver.solve(problem, seed=seed).levels[:, 0]
            errors = problem.errors(found[rows, None])[:, 0]
            moved[rows] = constant + (slope * errors).sum(dim=1)
        better = row.losses(found, moved) < row.losses(levels, shift)
        levels[better], shift[better] = found[better], moved[better]


@dataclass(frozen=True)
class _Rows:
    """A group's rows: their data, their problem, their float weights (r, d)."""

    data: RowData
    problem: RoundingProblem
    weight: Tensor
    refit: bool

    def losses(self, levels: Tensor, shift: Tensor) -> Tensor:
        """(r,) true losses."""
        return self.data.losses(self.weight + self.problem.errors(levels[None])[0], shift)
