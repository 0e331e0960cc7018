"""Processes that each saw a share of the data have the Grams of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import batches, residual
from torch import distributed, multiprocessing

from qubo_rounding.gram_reduction import all_reduce_grams
from qubo_rounding.statistics import collect_grams, load_grams, save_grams


def pictures() -> list[torch.Tensor]:
    return [*batches(), *batches(seed=1), *batches(seed=2)]


def reduce_share(rank: int, count: int, folder: Path) -> None:
    """What each process does; the last of three finds that the others have another layer."""
    place = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
    model = residual()
    share = pictures()[rank::count]
    save_grams(folder / f"{rank}.safetensors", all_reduce_grams(collect_grams(model, share)))
    own = collect_grams(model, share)
    name = next(iter(own))
    if rank == 0:
        own["another"] = own.pop(name)
    try:
        all_reduce_grams(own)
    except ValueError as error:
        (folder / f"{rank}.error").write_text(str(error))
    distributed.destroy_process_group()


@pytest.mark.parametrize("count", [2, 3])
def test_shares_add_up(tmp_path, count):
    multiprocessing.start_processes(
        reduce_share, args=(count, tmp_path), nprocs=count, start_method="spawn"
    )
    whole = collect_grams(residual(), pictures())
    first = load_grams(tmp_path / "0.safetensors")
    for rank in range(count):
        found = load_grams(tmp_path / f"{rank}.safetensors")
        assert list(found) == list(whole)
        for name, gram in whole.items():
            assert found[name].count == gram.count
            for key in ("second", "total"):
                given, wanted = found[name].tensors()[key], gram.tensors()[key]
                torch.testing.assert_close(given, wanted, rtol=1e-6, atol=1e-6)
            # every process gives its first batch the same signs: sums differ, but in all alike
            assert torch.equal(found[name].contrasts, first[name].contrasts)
            assert found[name].contrasts.any()
        assert "Grams of different layers" in (tmp_path / f"{rank}.error").read_text()


def test_without_a_group_there_is_nothing_to_add():
    with pytest.raises(ValueError, match="init_process_group first"):
        all_reduce_grams(collect_grams(residual(), batches()))
