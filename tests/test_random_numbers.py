"""Counter-based random numbers: the published generator, in any order, well spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_bits as slow_bits

from qubo_rounding.solvers.random_numbers import random_bits, stream_keys, uniforms

U64 = st.integers(0, 2**64 - 1)


@settings(max_examples=50, deadline=None)
@given(key=U64, step=st.integers(0, 2**63))
def test_the_bits_are_splitmix64(key: int, step: int) -> None:
    assert int(random_bits(np.uint64(key), np.uint64(step))) == slow_bits(key, step)


def test_splitmix64_starts_with_the_published_numbers() -> None:
    # Vigna's splitmix64.c from state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [slow_bits(1234567, step) for step in range(3)] == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), stream=st.integers(-(2**63), 2**63 - 1), draw=U64)
def test_keys_are_two_rounds_of_the_generator(seed: int, stream: int, draw: int) -> None:
    key = stream_keys(seed, torch.tensor([stream]), draw)
    assert int(key[0]) == slow_bits(slow_bits(seed % 2**64, draw), stream % 2**64)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    stream = torch.arange(12).reshape(3, 4)
    together = uniforms(stream_keys(5, stream), 7)
    assert together.shape == (3, 4, 7)
    assert np.array_equal(together[1:2, 2:], uniforms(stream_keys(5, stream[1:2, 2:]), 7))
    assert np.array_equal(together[..., :3], uniforms(stream_keys(5, stream), 3))


def test_seed_stream_and_draw_each_change_the_numbers() -> None:
    stream = torch.arange(100)
    keys = [stream_keys(seed, stream, draw) for seed in range(10) for draw in range(10)]
    assert len(np.unique(np.concatenate(keys))) == 10_000


def test_uniforms_are_uniform() -> None:
    sample = uniforms(stream_keys(0, torch.arange(100)), 1000).ravel()
    assert sample.min() >= 0
    assert sample.max() < 1
    counts = np.histogram(sample, bins=50, range=(0, 1))[0]
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square == pytest.approx(49, abs=5 * np.sqrt(2 * 49))
    neighbours = np.corrcoef(sample[:-1], sample[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(len(sample))
