"""Sweeps of single moves and of pairs: their naive twin, the order of columns, the matchings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch

from qubo_rounding.solvers import Annealing, Given
from qubo_rounding.solvers.partners import MATCHINGS, Pairing
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.sweeps import HostSweeps, block_width, from_blocks, in_blocks
from qubo_rounding.testing import random_problem


@pytest.mark.parametrize("free", [False, True], ids=["up/down", "free"])
def test_blocked_sweeps_take_the_decisions_of_a_plain_sweep(free: bool) -> None:
    problem = random_problem(1, 3, 150, seed=1, free=free, linear=True)
    high = problem.high.clone()
    high[..., 60:70] = problem.low[..., 60:70]
    problem = replace(problem, high=high)
    start, sweeps, keys = problem.nearest(), 12, stream_keys(7, problem.stream, 2)
    rows = HostSweeps(problem.normalised(), start)
    annealed, share = Annealing(sweeps=sweeps, hot=4.0, cold=1.0)._anneal(rows, keys)
    pairing = Pairing.of(problem.gram, block_width(problem.d))
    for at, row in reference.rows_of(problem):
        levels = start[at].numpy().astype(int)
        error = row.scale * (levels - row.target)
        warm = abs(error @ row.gram @ error) / problem.d  # the start's energy per weight
        warm = min(warm, float(problem.unit[at]) / 12)
        for sweep in range(sweeps):
            temperature = 4.0 * 0.25 ** (sweep / (sweeps - 1)) * warm
            proposals = proposals_of(pairing, sweep)
            levels = reference.metropolis_sweep(row, levels, temperature, int(keys[at]), proposals)
        assert annealed[at].tolist() == levels.tolist()
    assert 0 < share < 1
    assert not torch.equal(annealed, start)


def proposals_of(pairing: Pairing, sweep: int) -> list[tuple[int, tuple[int, ...]]]:
    """Of the first group: the number of each proposal's random bits, and its columns."""
    order = pairing.order[0].tolist()
    first = sweep * len(order)
    if sweep % 2 == 0:
        return [(first + place, (column,)) for place, column in enumerate(order)]
    proposals = []
    for block, (left, right) in enumerate(pairing.pairs[0, sweep // 2 % MATCHINGS]):
        begin = block * block_width(len(order))
        for m, (j, k) in enumerate(zip(left, right, strict=True)):
            if j != k:
                proposals.append((first + begin + m, (order[begin + j], order[begin + k])))
    return proposals


def test_slopes_stay_up_to_date_through_the_blocks() -> None:
    problem = random_problem(1, 4, 200, seed=2, linear=True).normalised()
    start = problem.nearest()
    sweeps = HostSweeps(problem, start)
    sweeps.begin(stream_keys(0, problem.stream))
    sweeps.run(np.full(30, 6.0, np.float32), 0)
    fresh = (problem.gradient(sweeps.levels) / 2).numpy()
    slope = sweeps._pairing.undo(from_blocks(sweeps._rows[0], 200))
    assert sweeps._made.min() > 500
    assert np.abs(slope - fresh).max() < 1e-4 * np.abs(fresh).max()


def test_rows_begin_again_where_they_began() -> None:
    problem = random_problem(2, 3, 70, seed=4).normalised()
    sweeps, temperatures = HostSweeps(problem, problem.nearest()), np.full(6, 3.0, np.float32)
    found = []
    for draw in (0, 1, 0):
        sweeps.begin(stream_keys(5, problem.stream, draw))
        assert torch.equal(sweeps.levels, problem.nearest())
        assert sweeps.accepted == 0
        sweeps.run(temperatures, 0)
        found.append((sweeps.levels, sweeps.accepted))
    assert torch.equal(found[0][0], found[2][0])
    assert found[0][1] == found[2][1] > 0
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize(("g", "d"), [(1, 1), (1, 2), (3, 9), (2, 64), (1, 65), (1, 200)])
def test_matchings_are_of_different_pairs_the_likest_first(g: int, d: int) -> None:
    problem = random_problem(g, 1, d, seed=d)
    width = block_width(d)
    pairing = Pairing.of(problem.gram, width)
    size = problem.gram.diagonal(dim1=1, dim2=2).sqrt()
    like = (problem.gram / (size.unsqueeze(1) * size.unsqueeze(2))).abs().numpy()
    for group in range(g):
        order = pairing.order[group]
        assert sorted(order) == list(range(d))
        for block in range(-(-d // width)):
            columns = order[block * width : (block + 1) * width]
            within = np.triu(like[group][np.ix_(columns, columns)], 1)
            seen: set[tuple[int, int]] = set()
            for left, right in pairing.pairs[group, :, block]:
                pairs = [(j, k) for j, k in zip(left, right, strict=True) if j != k]
                places = [place for pair in pairs for place in pair]
                assert len(set(places)) == len(places)
                assert not seen & set(pairs)
                seen |= set(pairs)
                assert all(j < k for j, k in pairs)
            if len(columns) > 1:
                first = tuple(pairing.pairs[group, 0, block, :, 0])
                assert within[first] == pytest.approx(within.max())
                assert len(seen) >= min(4, len(columns) - 1) * (len(columns) // 2) // 2


def test_an_order_is_undone() -> None:
    pairing = Pairing.of(random_problem(3, 1, 9, seed=0).gram, 16)
    rows = np.random.default_rng(0).integers(0, 99, (3, 2, 9))
    assert np.array_equal(pairing.undo(pairing.apply(rows)), rows)
    square = np.random.default_rng(0).random((3, 9, 9))
    twice = pairing.apply(pairing.apply(square).swapaxes(1, 2)).swapaxes(1, 2)
    assert np.array_equal(pairing.apply_to_both(square), twice)


def test_a_pair_moves_where_either_alone_would_have_to_climb() -> None:
    gram = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]], dtype=torch.float64)
    one = random_problem(1, 1, 2)
    ones = torch.ones_like(one.low)
    problem = replace(
        one,
        gram=gram,
        target=torch.tensor([[[0.6, 0.4]]]),
        scale=ones.double(),
        low=0 * ones,
        high=ones,
    )
    start = Given(torch.tensor([[[0, 1]]], dtype=torch.int16))
    assert bool((problem.flip_gain(start.levels) > 100 * problem.energy(start.levels)).all())
    solution = Annealing(sweeps=2, reads=1, start=start).solve(problem)
    assert solution.levels.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("d", [1, 7, 8, 63, 64, 65, 144, 576])
def test_blocks_hold_every_column_once(d: int) -> None:
    columns = np.arange(2 * d, dtype=np.float32).reshape(2, d) + 1
    blocks = in_blocks(columns)
    assert blocks.shape[2] % 8 == 0
    assert blocks.shape[2] <= 64
    assert blocks.shape[1] * blocks.shape[2] - d < 8 * blocks.shape[1]
    assert np.array_equal(from_blocks(blocks, d), columns)
    assert blocks.sum(dtype=np.float64) == columns.sum(dtype=np.float64)
