"""Contrasts of batches against sums by hand, and the share of a Gram that is chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qubo_rounding import Gram, LayerSettings, collect_grams, load_grams, quantise, save_grams
from qubo_rounding.batch_contrasts import BatchContrasts, _signs, _vectors, probes_of
from qubo_rounding.layer_problem import layer_problem, shrunk
from qubo_rounding.layers import find_layers, matrix_of
from qubo_rounding.local_loss import bias_shift, output_error
from qubo_rounding.solvers import Auto

EIGENVALUES = 0.9 ** torch.arange(40.0)


def inputs(count: int, seed: int, d: int = 40, mean: float = 0.0) -> Tensor:
    """Vectors of a falling spectrum in a basis that is always the same."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))[0]
    drawn = torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return drawn * EIGENVALUES[:d].sqrt() @ basis.T + mean


def gram_of_batches(x: Tensor, size: int) -> Gram:
    return collect_grams(nn.Sequential(nn.Linear(x.shape[1], 3)).eval(), x.split(size))["0"]


def exact_share(batches: list[Tensor], central: bool) -> float:
    """From the variance of equal batches' moments, as Schäfer and Strimmer have it."""
    x = torch.cat(batches).double()
    mean = x.mean(0) if central else torch.zeros(x.shape[1], dtype=torch.float64)
    moments = torch.stack([(b - mean).T @ (b - mean) / len(b) for b in map(Tensor.double, batches)])
    off = 1 - torch.eye(x.shape[1])
    whole, n = moments.mean(0), len(batches)
    variance = (moments - whole).square().sum(0) / (n * (n - 1))
    return float((variance * off).sum() / (whole.square() * off).sum())


@pytest.mark.parametrize(("g", "d"), [(1, 5), (3, 4), (1, 600)])
def test_contrasts_are_signed_sums_seen_through_vectors(g: int, d: int) -> None:
    contrasts, k = BatchContrasts(g, d, torch.device("cpu")), probes_of(g)
    generator = torch.Generator().manual_seed(1)
    reference = torch.rand(g, d, generator=generator, dtype=torch.float64)
    second = torch.zeros(g, d, d, dtype=torch.float64)
    total, count = torch.zeros(g, d, dtype=torch.float64), 0
    expected = torch.zeros(g, 3 * d + 1, k, dtype=torch.float64)
    vectors = _vectors(d, k, torch.device("cpu"))
    for batch in range(5):
        y = torch.randn(g, d, 3 + batch, generator=generator, dtype=torch.float64)
        second, total, count = second + y @ y.mT, total + y.sum(2), count + y.shape[2]
        filled = second.clone()
        if d > 256:
            for start in range(256, d, 256):
                filled[:, start:, start - 256 : start] = torch.nan
                filled[:, start:, : start - 256] = torch.nan
        contrasts.follow(filled, total, count, 256, batch)
        x = y + reference[..., None]
        own = x @ x.mT
        columns = torch.cat(
            [
                own @ vectors,
                own.diagonal(dim1=1, dim2=2)[..., None].expand(-1, -1, k),
                x.sum(2)[..., None].expand(-1, -1, k),
                torch.full((g, 1, k), float(x.shape[2]), dtype=torch.float64),
            ],
            dim=1,
        )
        expected += columns * _signs(batch, k)
    torch.testing.assert_close(contrasts.finish(reference), expected)


def test_batches_are_matched_by_such_of_the_other_sign() -> None:
    signs = torch.stack([_signs(batch, 32) for batch in range(8)])
    assert torch.equal(signs[::2], -signs[1::2])
    assert signs.abs().eq(1).all()
    assert not torch.equal(signs[0], signs[2])


@pytest.mark.parametrize("central", [True, False])
@pytest.mark.parametrize("mean", [0.0, 0.3, 30.0])
@pytest.mark.parametrize("count", [64, 512])
def test_the_share_is_that_of_the_variances(count: int, mean: float, central: bool) -> None:
    shares = [
        (
            gram_of_batches(x, count // 16).sampling_share(central=central),
            exact_share(list(x.split(count // 16)), central),
        )
        for x in (inputs(count, seed, mean=mean) for seed in range(1, 9))
    ]
    found, expected = torch.tensor(shares).mean(0).tolist()
    # The mean is one direction, of which so many random vectors see more or less.
    assert found == pytest.approx(expected, rel=0.1 if central else 0.3, abs=1e-3)


def test_more_images_leave_less_to_chance() -> None:
    few, many = (gram_of_batches(inputs(n, 5), n // 8) for n in (80, 8000))
    assert few.sampling_share(central=True) > 10 * many.sampling_share(central=True)


def test_the_share_of_paired_grams_is_that_of_the_rounded_networks_inputs() -> None:
    x, model = inputs(64, 2), nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 3)).eval()
    other = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 3)).eval()
    paired = collect_grams(model, x.split(8), quantised=other)["1"]
    alone = collect_grams(other, x.split(8))["1"]
    for central in (True, False):
        assert paired.sampling_share(central=central) == alone.sampling_share(central=central)


def test_shares_survive_addition_and_files(tmp_path: Path) -> None:
    x = inputs(64, 3)
    one, two = (gram_of_batches(part, 4) for part in x.chunk(2))
    share = (one + two).sampling_share(central=True)
    assert share == pytest.approx(exact_share(list(x.split(4)), True), rel=0.4)
    save_grams(tmp_path / "grams.safetensors", {"0": one})
    loaded = load_grams(tmp_path / "grams.safetensors")["0"]
    assert loaded.sampling_share(central=True) == one.sampling_share(central=True)


def test_uncorrelated_moments_have_no_share() -> None:
    gram = collect_grams(nn.Sequential(nn.Linear(1, 3)).eval(), inputs(8, 1)[:, :1].split(2))["0"]
    assert gram.sampling_share(central=True) == 0.0


def test_calls_of_one_batch_are_no_two_batches() -> None:
    twice, x = nn.Linear(40, 40), inputs(32, 1)
    model = nn.Sequential(twice, twice).eval()
    with pytest.raises(ValueError, match="made from one"):
        collect_grams(model, [x])["0"].sampling_share(central=True)
    assert 0 < collect_grams(model, x.split(8))["0"].sampling_share(central=True) < 1


def test_a_share_that_cannot_be_known_is_refused() -> None:
    once = gram_of_batches(inputs(32, 1), 32)
    with pytest.raises(ValueError, match="made from one"):
        once.sampling_share(central=True)
    by_hand = replace(once, contrasts=None)
    with pytest.raises(ValueError, match="no contrasts: it is older, or made by hand"):
        by_hand.sampling_share(central=True)
    with pytest.raises(ValueError, match=r"float64 of shape \(1, 121, 32\)"):
        replace(once, contrasts=torch.zeros(1, 121, 8, dtype=torch.float64))


def test_problems_are_shrunk_by_the_share() -> None:
    x, model = inputs(64, 4), nn.Sequential(nn.Linear(40, 12)).eval()
    gram = collect_grams(model, x.split(8))["0"]
    (layer,) = find_layers(model).layers.values()
    weight = matrix_of(model, layer)
    plain, _ = layer_problem(layer, weight, gram, LayerSettings(bits=3))
    problem, _ = layer_problem(layer, weight, gram, LayerSettings(bits=3, shrink="auto"))
    share = gram.sampling_share(central=True)
    assert 0 < share < 1
    assert problem.meta["shrink"] == share
    assert torch.equal(problem.gram, shrunk(plain.gram, share))


def test_shrunk_problems_carry_over_to_other_images() -> None:
    linear = nn.Linear(40, 60)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(3))
    model = nn.Sequential(linear).eval()
    few, many = (collect_grams(model, inputs(n, n).split(n // 8))["0"] for n in (32, 8000))
    (layer,) = find_layers(model).layers.values()
    weight, errors = matrix_of(model, layer), []
    for shrink in (0.0, "auto"):
        problem, _ = layer_problem(layer, weight, few, LayerSettings(bits=3, shrink=shrink))
        rounded = weight + problem.errors(Auto("balanced").solve(problem).levels)
        errors.append(output_error(weight, rounded, bias_shift(weight, rounded, few), many).sum())
    assert errors[1] < 0.9 * errors[0]


def test_networks_are_rounded_with_it_whatever_the_calibration() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    batches = inputs(64, 6).split(8)
    for calibration in ("sequential", "independent"):
        settings = LayerSettings(bits=3, shrink="auto")
        shrunk_, plain = (
            quantise(model, batches, settings=s, calibration=calibration, seed=1)
            for s in (settings, LayerSettings(bits=3))
        )
        assert all(0 < record.stats["shrink"] < 1 for record in shrunk_.records)
        assert not any("shrink" in record.stats for record in plain.records)
        assert any(
            not torch.equal(shrunk_.layers[name].levels, plain.layers[name].levels)
            for name in plain.layers
        )


@pytest.mark.parametrize("calibration", ["sequential", "independent"])
def test_one_batch_is_refused_before_the_work(tmp_path: Path, calibration: Any) -> None:
    model, settings = nn.Sequential(nn.Linear(40, 3)).eval(), LayerSettings(shrink="auto")
    batches = [inputs(8, 1)]
    with pytest.raises(ValueError, match=r"shrink='auto'.*made from one; give more images"):
        quantise(model, batches, settings=settings, calibration=calibration, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shrink", ["most", 1.0, -0.1, float("nan"), None])
def test_other_shares_are_refused(shrink: Any) -> None:
    with pytest.raises(ValueError, match="give a share in"):
        LayerSettings(shrink=shrink)
