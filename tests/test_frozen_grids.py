"""Scales that are given: from an encodings file to the same levels, or a word of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import LAYERS, batches, residual

import qubo_rounding as qr
from qubo_rounding.export import write_encodings
from qubo_rounding.relaxed.activations import quantisers_of

SETTINGS = [
    qr.LayerSettings(),
    qr.LayerSettings(granularity="tensor"),
    qr.LayerSettings(symmetric=False, bits=3),
    qr.LayerSettings(layer_bits={"head": 6}),
]


def written(path: Path, settings: qr.LayerSettings) -> qr.QuantisedNetwork:
    result = qr.quantise(residual(), batches(), solver=qr.Gptq(), settings=settings)
    write_encodings(path, result, settings)
    return result


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_a_network_is_rounded_on_the_scales_of_a_file(
    settings: qr.LayerSettings, tmp_path: Path
) -> None:
    before = written(tmp_path / "net.json", settings)
    grids = qr.read_encodings(tmp_path / "net.json")
    assert set(grids) == set(LAYERS)
    frozen = qr.LayerSettings(symmetric=settings.symmetric, grids=grids)
    after = qr.quantise(residual(), batches(), solver=qr.Gptq(), settings=frozen)
    for name, layer in after.layers.items():
        assert torch.equal(layer.levels, before.layers[name].levels)
        assert torch.equal(layer.scale, before.layers[name].scale)
        assert layer.record.bits == before.layers[name].record.bits


def test_other_counting_gives_the_same_values(tmp_path: Path) -> None:
    before = written(tmp_path / "net.json", qr.LayerSettings())
    grids = qr.read_encodings(tmp_path / "net.json")
    from_zero = qr.LayerSettings(symmetric=False, grids=grids)
    after = qr.quantise(residual(), batches(), solver=qr.Gptq(), settings=from_zero)
    for name, layer in after.layers.items():
        assert int(layer.levels.min()) >= 0
        assert torch.allclose(layer.weight, before.layers[name].weight)


def test_layers_without_a_grid_get_their_own_and_strangers_are_named(tmp_path: Path) -> None:
    written(tmp_path / "net.json", qr.LayerSettings(bits=5))
    grids = qr.read_encodings(tmp_path / "net.json")
    some = qr.LayerSettings(grids={"stem": grids["stem"]})
    result = qr.quantise(residual(), batches(), solver=qr.Nearest(), settings=some)
    assert [record.bits for record in result.records] == [5, 4, 4, 4, 4]
    strange = qr.LayerSettings(grids={"tail": grids["stem"]})
    with pytest.raises(ValueError, match=r"no layers \['tail'\]"):
        qr.quantise(residual(), batches(), solver=qr.Nearest(), settings=strange)
    wrong = qr.LayerSettings(grids={"head": grids["stem"]})
    with pytest.raises(ValueError, match="layer 'head': there are 6 scales for 5 output channels"):
        qr.quantise(residual(), batches(), solver=qr.Nearest(), settings=wrong)


def test_runs_on_other_scales_are_other_runs(tmp_path: Path) -> None:
    written(tmp_path / "net.json", qr.LayerSettings())
    grids = qr.read_encodings(tmp_path / "net.json")
    how: dict[str, Any] = {"solver": qr.Nearest(), "run": tmp_path / "run"}
    qr.quantise(residual(), batches(), settings=qr.LayerSettings(grids=grids), **how)
    scales = tuple(2 * scale for scale in grids["head"].scales)
    other = {**grids, "head": qr.FrozenGrid(scales, grids["head"].offsets, 4)}
    with pytest.raises(ValueError, match="holds a run with other settings"):
        qr.quantise(residual(), batches(), settings=qr.LayerSettings(grids=other), **how)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equalise": True}, "leave out equalise and scale_refits"),
        ({"scale_refits": 1}, "leave out equalise and scale_refits"),
        ({"layer_bits": {"stem": 4}}, r"layers \['stem'\] have bits of their own and grids"),
    ],
)
def test_settings_that_contradict_grids_are_refused(changes: dict[str, Any], message: str) -> None:
    grids = {"stem": qr.FrozenGrid((0.1,), (-8,), 4)}
    with pytest.raises(ValueError, match=message):
        qr.LayerSettings(grids=grids, **changes)


def encoding(**changes: Any) -> dict[str, Any]:
    start = {"bitwidth": 4, "dtype": "int", "scale": 0.5, "offset": -8, "min": -4.0, "max": 3.5}
    return {key: value for key, value in {**start, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is no readable encodings file"),
        ("[]", "has no param_encodings"),
        ({"param_encodings": {}}, "has no param_encodings"),
        ({"param_encodings": [encoding()]}, "has no param_encodings"),
        ({"param_encodings": {"a.weight": []}}, "'a.weight' has no list"),
        ({"param_encodings": {"a.weight": [3]}}, "'a.weight' lacks a key"),
        ({"param_encodings": {"a.weight": [encoding(scale=...)]}}, "lacks a key"),
        ({"param_encodings": {"a.weight": [encoding(scale=-1.0)]}}, "not positive"),
        ({"param_encodings": {"a.weight": [encoding(scale="x")]}}, "not positive"),
        ({"param_encodings": {"a.weight": [encoding(scale=True)]}}, "not positive"),
        ({"param_encodings": {"a.weight": [encoding(offset=0.5)]}}, "no whole number"),
        ({"param_encodings": {"a.weight": [encoding(max=float("nan"))]}}, "not finite"),
        ({"param_encodings": {"a.weight": [encoding(scale=10**400)]}}, "not finite"),
        ({"param_encodings": {"a.weight": [encoding(scale=1e-320)]}}, "inf levels between"),
        ("[" * 100_000, "is no readable encodings file"),
        ({"param_encodings": {"a.weight": [encoding(bitwidth=4.0)]}}, "bits is 4.0"),
        ({"param_encodings": {"a.weight": [encoding(bitwidth=16)]}}, "bits is 16"),
        ({"param_encodings": {"a.weight": [encoding(dtype="float")]}}, "and 'int'"),
        ({"param_encodings": {"a.weight": [encoding(), encoding(bitwidth=5)]}}, "give one"),
        ({"param_encodings": {"a.weight": [encoding(max=3.0)]}}, "15 levels between min and max"),
    ],
)
def test_foreign_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        qr.read_encodings(path)
    assert "foreign.json" in str(refused.value)
    with pytest.raises(ValueError, match=r"foreign\.json .*(no readable|no activation_encodings)"):
        qr.read_encodings(path, "activations")


ACTIVATIONS = qr.LayerSettings(act_bits=8, layer_bits={"head": 6})


def test_activations_keep_the_grids_of_a_file(tmp_path: Path) -> None:
    before = written(tmp_path / "net.json", ACTIVATIONS)
    sites = qr.read_encodings(tmp_path / "net.json", "activations")
    settings = qr.LayerSettings(layer_bits={"head": 6}, act_grids=sites)
    other = [2 * batch for batch in batches()]  # their ranges would be others
    after = qr.quantise(residual(), other, solver=qr.Gptq(), settings=settings)
    write_encodings(tmp_path / "again.json", after, settings)
    assert qr.read_encodings(tmp_path / "again.json", "activations") == sites
    images = torch.cat(batches())
    own, its = (quantisers_of(result.model) for result in (before, after))
    assert own is not None
    assert its is not None
    for site in own.sites:
        assert torch.equal(own[site].quantise(images), its[site].quantise(images))


def test_activations_without_a_grid_need_bits(tmp_path: Path) -> None:
    written(tmp_path / "net.json", ACTIVATIONS)
    sites = qr.read_encodings(tmp_path / "net.json", "activations")
    first, *others = sites
    some: dict[str, Any] = {"act_grids": {first: sites[first]}}
    how: dict[str, Any] = {"solver": qr.Nearest()}
    result = qr.quantise(
        residual(), batches(), settings=qr.LayerSettings(act_bits=5, **some), **how
    )
    quantisers = quantisers_of(result.model)
    assert quantisers is not None
    assert [quantisers[site].bits for site in quantisers.sites] == [8] + [5] * len(others)
    with pytest.raises(ValueError, match="have no grid and no bits"):
        qr.quantise(residual(), batches(), settings=qr.LayerSettings(**some), **how)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"strange": qr.FrozenGrid((0.1,), (0,), 8)}, r"no sites \['strange'\]"),
        ({"input": qr.FrozenGrid((0.1, 0.2), (0, 0), 8)}, "site 'input' has 2 scales"),
        ({"input": qr.FrozenGrid((0.1,), (3,), 8)}, "site 'input': scale is 0.1 and zero_point -3"),
        ({"input": qr.FrozenGrid((1e-50,), (0,), 8)}, "give a scale from 1.2e-38"),
    ],
)
def test_grids_that_no_activation_can_have_are_refused(
    sites: dict[str, qr.FrozenGrid], message: str
) -> None:
    settings = qr.LayerSettings(act_bits=8, act_grids=sites)
    with pytest.raises(ValueError, match=message):
        qr.quantise(residual(), batches(), solver=qr.Nearest(), settings=settings)


def test_grids_of_activations_are_neither_learned_nor_equalised_away() -> None:
    sites = {"input": qr.FrozenGrid((0.1,), (-8,), 4)}
    with pytest.raises(ValueError, match="leave out equalise, or act_grids"):
        qr.LayerSettings(act_grids=sites, equalise=True)
    with pytest.raises(ValueError, match="give it step_lr=0"):
        qr.quantise(
            residual(),
            batches(),
            reconstruction=qr.BlockReconstruction(),
            settings=qr.LayerSettings(act_bits=8, act_grids=sites),
        )


def test_encodings_of_biases_are_left_unread(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    both = {"a.b.weight": [encoding()], "a.b.bias": [encoding(bitwidth=32)], "weight": [encoding()]}
    path.write_text(json.dumps({"param_encodings": both}))
    grids = qr.read_encodings(path)
    assert grids == {name: qr.FrozenGrid((0.5,), (-8,), 4) for name in ("a.b", "")}
    with pytest.raises(ValueError, match="1 scales and 2 offsets"):
        qr.FrozenGrid((0.5,), (-8, -8), 4)
