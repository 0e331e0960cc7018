"""Solvers of this package as dimod samplers, for any binary quadratic model."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields, replace
from time import perf_counter_ns
from typing import Any

import dimod
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bqm import as_sampleset, from_bqm
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watching


@dataclass(frozen=True)
class SolverSampler(dimod.Sampler):
    """A dimod sampler that lets a solver treat the model: `SolverSampler(Annealing()).sample(bqm)`.

    Args:
        solver: any solver. The problem it sees is convex (see `from_bqm`).
    """

    solver: Solver = field(default_factory=Annealing)

    @property
    def parameters(self) -> dict[str, list[str]]:
        """Keyword arguments of `sample`; no properties belong to them."""
        return {"num_reads": [], "seed": [], "time_limit": []}

    @property
    def properties(self) -> dict[str, Any]:
        """The solver's configuration."""
        return {"solver": repr(self.solver)}

    def sample(
        self,
        bqm: dimod.BinaryQuadraticModel,
        *,
        num_reads: int = 1,
        seed: int | None = None,
        time_limit: float | None = None,
        **unknown: Any,
    ) -> dimod.SampleSet:
        """Samples with the model's own energies, one row a read.

        Reads differ in their random numbers only and are treated together, as rows with one Gram
        matrix; one read says all that a solver without random numbers has to say.

        Args:
            bqm: the model; small ones or dense ones, as the problem is dense.
            num_reads: independent runs.
            seed: same model and seed give the same samples; None draws one.
            time_limit: seconds; None means none. Solvers that do not watch the clock ignore it.
            unknown: ignored with a warning, as dimod wants.

        Returns:
            The samples. Their `info` holds "timing" (preprocessing_ns, sampling_ns and
            postprocessing_ns, as dwave-samplers'), "seed", "solver", "lower_bound" (no sample has
            less energy; None if the solver gives none), "proven" (does the best sample reach it?)
            and the solver's "stats".

        Raises:
            RefusedError: the solver refuses the problem.
            ValueError: num_reads or time_limit is not positive, a bias not finite.
        """
        self.remove_unknown_kwargs(**unknown)
        if num_reads < 1:
            raise ValueError(f"num_reads is {num_reads}; give at least 1.")
        started = perf_counter_ns()
        seed = secrets.randbits(31) if seed is None else seed
        problem = _repeated(from_bqm(bqm), num_reads)
        posed = perf_counter_ns()
        with watching(time_limit=time_limit):
            solution = self.solver.solve(problem, seed=seed)
        solved = perf_counter_ns()
        sampleset = as_sampleset(solution.levels, bqm)
        sampleset.info.update(
            **_verdict(solution),
            solver=repr(self.solver),
            seed=seed,
            stats=dict(solution.stats),
            timing={
                "preprocessing_ns": posed - started,
                "sampling_ns": solved - posed,
                "postprocessing_ns": perf_counter_ns() - solved,
            },
        )
        return sampleset


def _repeated(problem: RoundingProblem, num_reads: int) -> RoundingProblem:
    """The only row `num_reads` times, each with a stream of random numbers of its own."""
    rows = {
        f.name: value.repeat_interleave(num_reads, dim=1)
        for f in fields(problem)
        if f.name != "gram" and isinstance(value := getattr(problem, f.name), Tensor)
    }
    return replace(problem, **rows | {"stream": None})


def _verdict(solution: Solution) -> dict[str, Any]:
    """The best lower bound of all rows, which are one problem, and whether a row attains it."""
    bounds = solution.energy.new_empty(0) if solution.lower_bound is None else solution.lower_bound
    bounds = bounds[bounds.isfinite()]
    if not len(bounds):
        return {"lower_bound": None, "proven": False}
    best = bounds.max()
    proven = replace(solution, lower_bound=best.expand_as(solution.energy)).proven
    return {"lower_bound": float(best), "proven": bool(proven.any())}
