"""Whole networks by reconstruction and finish, and what the command line calls them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import LAYERS, batches, residual
from torch import Tensor, nn

from qubo_rounding import Annealing, Auto, Gptq, LayerSettings, Nearest, evaluate, predict, quantise
from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.methods import method_options
from qubo_rounding.network import nearest_network
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Distillation, Reconstruction
from qubo_rounding.relaxed.softening import PlainSigmoid, StraightThrough
from tests.test_network import same_bits

QUICK = Reconstruction(iterations=200, lr=2e-2, lam=1.0, normalise=True, batch=8)
SETTINGS = LayerSettings(bits=3)


def rounded(model: nn.Module | None = None, loader: Any = None, **options: Any) -> Any:
    data = batches(3, size=8) if loader is None else loader
    return quantise(model or residual(), data, **{"settings": SETTINGS} | options)


def divergence(model: nn.Module) -> float:
    data = batches(3, size=8)
    kl = evaluate(predict(model, data), None, predict(residual(), data)).kl
    assert kl is not None
    return kl


@pytest.mark.parametrize(
    "options",
    [
        {"reconstruction": QUICK},
        {"reconstruction": Reconstruction(**{**vars(QUICK), "positions": 16})},
        {"reconstruction": Reconstruction(**{**vars(QUICK), "asymmetric": False})},
        {"reconstruction": Reconstruction(**{**vars(QUICK), "start": Gptq()})},
        {"solver": Gptq(), "finish": ActivationFinish(positions=64)},
        {"reconstruction": QUICK, "finish": ActivationFinish(positions=64)},
    ],
    ids=["all positions", "some positions", "symmetric", "near a start", "finish", "both"],
)
def test_every_way_beats_nearest(options: dict[str, Any]) -> None:
    nearest = rounded(solver=Nearest(), settings=LayerSettings(bits=3, bias="keep"))
    result = rounded(**options)
    assert list(result.layers) == LAYERS
    assert divergence(result.model) < divergence(nearest.model)
    for record in result.records:
        assert ("ActivationFinish" in record.solver) == ("finish" in options)
        assert ("Reconstruction" in record.solver) == ("reconstruction" in options)


def test_a_finish_does_not_raise_the_loss_it_looks_at() -> None:
    result = rounded(solver=Gptq(), finish=ActivationFinish(positions=64))
    stats = {record.name: record.stats for record in result.records}
    followed = [name for name, s in stats.items() if "loss_before_finish" in s]
    assert followed == ["stem", "depthwise", "down"]  # a relu follows these three
    for name in followed:
        assert stats[name]["loss"] <= stats[name]["loss_before_finish"]
    assert sum(stats[n]["loss"] for n in followed) < sum(
        stats[n]["loss_before_finish"] for n in followed
    )


@pytest.mark.parametrize("candidates", ["up_down", "free"])
def test_scale_refits_lower_energies(candidates: Any) -> None:
    runs = []
    for refits in (0, 3):
        settings = LayerSettings(bits=3, candidates=candidates, scale_refits=refits)
        runs.append(rounded(solver=Gptq(), settings=settings, calibration="independent"))
    for plain, refitted in zip(*(run.records for run in runs), strict=True):
        assert refitted.energy <= plain.energy * (1 + 1e-9)
        assert refitted.energy_nearest == plain.energy_nearest
        assert refitted.stats["energy_before_refits"] == pytest.approx(plain.energy)
    weight = runs[1].model.stem.weight.detach()
    assert torch.equal(
        weight.flatten(1).double()[None].float(), runs[1].layers["stem"].weight.float()
    )


def test_a_run_folder_gives_the_same_bits_again(tmp_path: Path) -> None:
    options = {"reconstruction": QUICK, "finish": ActivationFinish(positions=64)}
    whole, first = rounded(**options), rounded(run=tmp_path, **options)
    (tmp_path / "layers" / "down.safetensors").unlink()
    again = rounded(run=tmp_path, **options)
    assert same_bits(whole.model, first.model)
    assert same_bits(whole.model, again.model)
    assert not list(tmp_path.rglob("*.checkpoint"))
    with pytest.raises(ValueError, match="finish:"):
        rounded(run=tmp_path, reconstruction=QUICK)


def test_memory_decides_about_no_bit() -> None:
    runs = [
        rounded(reconstruction=QUICK, finish=ActivationFinish(positions=64), memory=memory)
        for memory in (0, 2**30)
    ]
    assert same_bits(runs[0].model, runs[1].model)


def test_reconstruction_with_quantised_activations() -> None:
    settings = LayerSettings(bits=4, act_bits=4)
    result = rounded(reconstruction=QUICK, settings=settings)
    nearest = nearest_network(residual(), batches()[0], result, settings)
    assert divergence(result.model) < divergence(nearest)
    names = [n for n in result.model.state_dict() if n.startswith("activation_quantisers")]
    assert any(name.endswith("scale") for name in names)
    x = batches()[0]
    with torch.no_grad():
        values = result.model.stem(x)  # a layer by itself is not quantised
    assert len(values.unique()) > 2**4


@pytest.mark.parametrize("candidates", ["up_down", "free"])
def test_distillation_lowers_the_divergence_of_its_start(candidates: Any) -> None:
    settings = LayerSettings(bits=2, candidates=candidates)
    start = rounded(solver=Nearest(), settings=settings)
    method = Distillation(
        iterations=100,
        lr=3e-2,
        start=Nearest(),
        batch=24,
        relaxation=StraightThrough(),
        scale_lr=0.0,
    )
    result = rounded(reconstruction=method, settings=settings)
    assert divergence(result.model) < 0.8 * divergence(start.model)
    assert any(record.stats["changed"] for record in result.records)


def test_distillation_leaves_the_levels_as_they_are_if_not_told_otherwise() -> None:
    settings = LayerSettings(bits=2)
    start = rounded(solver=Nearest(), settings=settings)
    method = Distillation(iterations=100, start=Nearest(), batch=24, scale_lr=2e-3)
    result = rounded(reconstruction=method, settings=settings)
    assert divergence(result.model) < divergence(start.model)
    assert not any(record.stats["changed"] for record in result.records)
    for name, layer in start.layers.items():
        assert torch.equal(layer.levels, result.layers[name].levels)
        assert not torch.equal(layer.scale, result.layers[name].scale)


def test_the_nearest_network_is_nearest_rounding_with_kept_biases() -> None:
    settings = LayerSettings(bits=3)
    result = rounded(solver=Annealing(reads=1, sweeps=20), settings=settings)
    ours = nearest_network(residual(), batches()[0], result, settings)
    theirs = rounded(solver=Nearest(), settings=LayerSettings(bits=3, bias="keep"))
    x = batches(1, seed=5)[0]
    with torch.no_grad():
        assert torch.equal(ours(x), theirs.model(x))


class Twice(nn.Module):
    """Calls one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(F.relu(self.layer(x)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction": QUICK, "solver": Gptq()}, "a solver or a reconstruction, not both"),
        ({"reconstruction": QUICK, "calibration": "independent"}, "calibration='sequential'"),
        ({"finish": ActivationFinish(), "calibration": "independent"}, "calibration='sequential'"),
        (
            {"settings": LayerSettings(act_bits=8), "calibration": "independent"},
            "calibration='sequential'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rounded(**options)


@pytest.mark.parametrize("options", [{"reconstruction": QUICK}, {"finish": ActivationFinish()}])
def test_a_layer_that_is_called_twice_is_named(options: dict[str, Any]) -> None:
    x = [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(ValueError, match=r"calls \['layer'\] more than once"):
        rounded(Twice().eval(), x, **options)
    assert list(rounded(Twice().eval(), x, skip=["layer"], **options).layers) == ["head"]


def test_refits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="scale_refits is -1"):
        LayerSettings(scale_refits=-1)


def test_activation_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="from 2 to 8"):
        LayerSettings(act_bits=16)


# names of methods


def test_methods_have_names() -> None:
    assert method_options("adaround") == {"reconstruction": Reconstruction()}
    options = "iterations=20,lr=0.01,positions=16,normalise=true,start=gptq"
    assert method_options(f"adaround:{options},relaxation=plain_sigmoid") == {
        "reconstruction": Reconstruction(
            iterations=20,
            lr=0.01,
            positions=16,
            normalise=True,
            start=Gptq(),
            relaxation=PlainSigmoid(),
        )
    }
    assert method_options("block:blocks=layer1.0+layer1.1,fisher=false") == {
        "reconstruction": BlockReconstruction(blocks=("layer1.0", "layer1.1"), fisher=False)
    }
    whole = BlockReconstruction(blocks=("",), divergence="kl")
    assert method_options("block:blocks=model,divergence=kl") == {"reconstruction": whole}
    assert method_options("distil:iterations=9") == {"reconstruction": Distillation(iterations=9)}
    assert method_options("auto") == {"solver": Auto("fast")}
    assert method_options("auto:effort=best") == {"solver": Auto("best")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brecq", "there is no method 'brecq'; there are adaround, block, distil, auto"),
        ("auto:effort=none", "give one of fast, balanced, best"),
        ("adaround:steps=5", "'steps=5' is no option of adaround"),
        ("adaround:positions=few", "'positions=few' does not fit"),
        ("adaround:relaxation=soft", "there is no relaxation 'soft'"),
        ("block:divergence=kl", "give it blocks"),
        ("adaround:normalise=yes", "give true or false"),
    ],
)
def test_bad_names_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        method_options(text)


def test_the_allocator_takes_its_settings_or_says_no() -> None:
    assert reuse_freed_memory() in (True, False)
    assert torch.ones(3).sum() == 3
