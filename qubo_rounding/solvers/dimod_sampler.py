"""Any dimod sampler as a solver, row by row: the annealing world's tools on rounding problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dimod
from dwave.samplers import SimulatedAnnealingSampler, SteepestDescentSampler, TabuSampler

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bqm import (
    Encoding,
    check_encoding,
    count_variables,
    levels_from_sample,
    to_bqm,
)
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class DimodSampler(Solver):
    """The sampler's lowest sample for every row.

    Every row becomes one dense binary quadratic model, a weight with more than two levels several
    of its variables; rows that a time limit leaves out stay at nearest and are counted in
    `stats["rows_left"]`. A sampler with a `seed` parameter is given one made from the solve's seed
    and the row.

    Args:
        sampler: any `dimod.Sampler`.
        parameters: keyword arguments of its `sample`.
        exact: does the sampler visit every assignment? Then its energy is its own lower bound.
        max_variables: refuse rows with more variables; None means no limit.
        encoding: of weights with more than two levels: "binary" or "unary", see `bit_steps`.
    """

    sampler: dimod.Sampler
    parameters: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    max_variables: int | None = None
    encoding: Encoding = "binary"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.parameters) - set(self.sampler.parameters)):
            raise ValueError(
                f"{type(self.sampler).__name__} has no parameters {unknown}; "
                f"it has {sorted(self.sampler.parameters)}."
            )
        check_encoding(self.encoding)

    def __repr__(self) -> str:
        # Samplers print their memory address; records need the same words for the same solver.
        sampler = f"{type(self.sampler).__name__}()"
        options = f"exact={self.exact}, max_variables={self.max_variables}"
        return (
            f"DimodSampler({sampler}, {dict(self.parameters)}, {options}, "
            f"encoding={self.encoding!r})"
        )

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Too many variables in some row?"""
        widest = int(count_variables(problem, self.encoding).max())
        if self.max_variables is None or widest <= self.max_variables:
            return None
        return f"a row has {widest} binary variables and max_variables is {self.max_variables}."

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best sample of every row."""
        levels = problem.nearest()
        keys = stream_keys(seed, problem.stream)
        rows = [(group, row) for group in range(problem.g) for row in range(problem.r)]
        done = 0
        for group, row in watched(rows, "dimod"):
            bqm = to_bqm(problem, group, row, self.encoding)
            # A row that nothing flows into leaves nothing to decide; samplers warn of it.
            if any(bqm.linear.values()) or any(bqm.quadratic.values()):
                samples = self.sampler.sample(bqm, **self._parameters(int(keys[group, row])))
                lowest = dict(samples.first[0])
                levels[group, row] = levels_from_sample(problem, lowest, group, row)
            done += 1
        complete = self.exact and done == len(rows)
        return problem.solution(
            levels,
            lower_bound=problem.energy(levels) if complete else None,
            rows_left=len(rows) - done,
        )

    def _parameters(self, key: int) -> dict[str, Any]:
        seeded = {"seed": key % 2**31} if "seed" in self.sampler.parameters else {}
        return seeded | dict(self.parameters)


def dwave_annealing(reads: int = 10, sweeps: int = 1000) -> DimodSampler:
    """dwave-samplers' simulated annealing (C++)."""
    check_whole(1, reads=reads, sweeps=sweeps)
    return DimodSampler(SimulatedAnnealingSampler(), {"num_reads": reads, "num_sweeps": sweeps})


def dwave_tabu(reads: int = 1, milliseconds: int = 100) -> DimodSampler:
    """dwave-samplers' tabu search (C++); ends by its clock, so its bits depend on the machine."""
    # It takes a negative time for no limit and never ends.
    check_whole(1, reads=reads, milliseconds=milliseconds)
    return DimodSampler(TabuSampler(), {"num_reads": reads, "timeout": milliseconds})


def dwave_descent(reads: int = 100) -> DimodSampler:
    """dwave-samplers' steepest descent (C++) from random starts."""
    check_whole(1, reads=reads)
    return DimodSampler(SteepestDescentSampler(), {"num_reads": reads})


def dimod_exact(max_variables: int = 18) -> DimodSampler:
    """Brute force by dimod; numpy, all samples in memory at once."""
    check_whole(1, max_variables=max_variables)
    return DimodSampler(dimod.ExactSolver(), exact=True, max_variables=max_variables)
