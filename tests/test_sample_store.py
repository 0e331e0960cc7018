"""Where samples lie does not change what comes back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qubo_rounding.relaxed.sample_store import SampleStore, filled_store


def rows(n: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "input": torch.randn(n, 2, 3, generator=draw),
        "target": torch.randn(n, 5, generator=draw),
        "tokens": torch.randint(9, (n, 4), generator=draw),
    }


BUDGETS = {"memory": 1e9, "disk": 0.0, "one of each": 4.0 * 7 * 6}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_rows_come_back_bit_for_bit(budget: float) -> None:
    given = rows(7)
    store = SampleStore(7, given, budget)
    for part in (slice(0, 3), slice(3, 7)):
        store.put(part.start, {name: t[part] for name, t in given.items()})
    index = torch.tensor([6, 0, 3, 3])
    assert list(store.take(index)) == ["input", "target", "tokens"]
    for name, tensor in store.take(index).items():
        assert torch.equal(tensor, given[name][index])
    for name, tensor in store.take(slice(2, 5)).items():
        assert torch.equal(tensor, given[name][2:5])


@pytest.mark.parametrize("budget", [0.0, 1e9], ids=["disk", "memory"])
def test_batches_of_several_rows_an_image_fill_a_store(budget: float) -> None:
    batches = [rows(6, seed=1), rows(4, seed=2)]  # two rows for each of three and two images
    store = filled_store(iter(batches), images=5, first_images=3, budget=budget, of="it")
    assert store.count == 10
    every = store.take(slice(0, 10))
    for name in batches[0]:
        assert torch.equal(every[name], torch.cat([batch[name] for batch in batches]))


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3), (6, 3)])
def test_rows_that_images_do_not_share_alike_are_refused(sizes: tuple[int, int]) -> None:
    batches = [rows(size) for size in sizes]
    with pytest.raises(ValueError, match="layer 'a' does not see the same number of inputs"):
        filled_store(iter(batches), images=5, first_images=3, budget=1e9, of="layer 'a'")


def test_slices_in_memory_are_views() -> None:
    store = SampleStore(3, {"input": torch.zeros(1, 4)}, 1e9)
    store.put(0, {"input": torch.zeros(3, 4)})
    store.take(slice(1, 2))["input"].fill_(7)
    assert store.take(torch.tensor([1]))["input"].eq(7).all()
