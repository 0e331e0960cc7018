"""Rounding problems of the evaluation kit's networks, with held-out Grams beside them.

Grams are collected once, from 256 calibration and 256 validation photographs, and kept in
runs/kit_problems; problems of any width of weights are made from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from analysis.judged_networks import NETWORKS
from analysis.kit_networks import kit_folder
from qubo_rounding import (
    Gram,
    LayerSettings,
    RoundingProblem,
    bias_shift,
    collect_grams,
    find_layers,
    fold_batch_norm,
    layer_problem,
    load_grams,
    load_model,
    open_images,
    output_error,
    save_grams,
)
from qubo_rounding.layers import matrix_of

IMAGES = 256
FOLDER = Path("runs/kit_problems")

PROBLEM_NETWORKS = {
    **NETWORKS,  # without a head, so that it has problems but no answers:
    "resnet18_to_layer3": f"{Path(__file__).parent / 'kit_networks.py'}:resnet18_to_layer3",
}


@dataclass(frozen=True)
class KitProblem:
    """One layer's problem, and what judges its levels on held-out photographs.

    Args:
        layer: its dotted name.
        problem: up/down, per channel, the bias refitted; from the calibration Gram.
        weight: (g, r, d) float weights.
        gram, held_out: moments of the layer's inputs.
    """

    layer: str
    problem: RoundingProblem
    weight: Tensor
    gram: Gram
    held_out: Gram

    def rows(self, count: int) -> KitProblem:
        """The same with no more than so many rows of each group."""
        few = slice(0, count)
        return replace(self, problem=self.problem.part(rows=few), weight=self.weight[:, few])

    def held_out_energy(self, levels: Tensor) -> Tensor:
        """(g, r) energy of levels (g, r, d) on the held-out photographs."""
        p = self.problem
        rounded = self.weight.double() + p.errors(levels)
        return output_error(self.weight, rounded, self.shift(rounded), self.held_out)

    def shift(self, rounded: Tensor) -> Tensor:
        """(g, r) the bias correction that the calibration photographs ask for."""
        return bias_shift(self.weight, rounded, self.gram)


def posed_layers(
    model: nn.Module,
    grams: Mapping[str, Gram],
    held_out: Mapping[str, Gram],
    settings: LayerSettings,
) -> Iterator[KitProblem]:
    """The problems of the layers that there are Grams for, in their order.

    Args:
        model: batch norms folded.
        grams, held_out: moments of the layers' inputs.
        settings: how layers are posed.
    """
    layers = find_layers(model).layers
    for name, gram in grams.items():
        weight = matrix_of(model, layers[name])
        problem, _ = layer_problem(layers[name], weight, gram, settings)
        yield KitProblem(name, problem, weight, gram, held_out[name])


def kept_grams(network: str, split: str, count: int = IMAGES) -> dict[str, Gram]:
    """Grams of so many photographs of a split of the kit, collected once.

    Args:
        network: one of PROBLEM_NETWORKS.
        split: "calibration" or "validation".
        count: photographs, spread evenly over the split.
    """
    number = "" if count == IMAGES else f"-{count}"
    path = FOLDER / f"{network}-{split}{number}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model, preprocessing = load_model(PROBLEM_NETWORKS[network])
        images = open_images(kit_folder() / "images" / split, preprocessing, limit=count)
        folded, _ = fold_batch_norm(model, next(iter(images))[0])
        save_grams(path, collect_grams(folded, images, progress=True))
    return load_grams(path)


def folded_network(network: str) -> nn.Module:
    """One of PROBLEM_NETWORKS with its batch norms folded."""
    model, preprocessing = load_model(PROBLEM_NETWORKS[network])
    images = open_images(kit_folder() / "images" / "calibration", preprocessing, limit=1)
    return fold_batch_norm(model, next(iter(images))[0])[0]


def kit_problems(network: str, bits: int, widest: int, narrowest: int = 1) -> Iterator[KitProblem]:
    """The problems of a network's layers with so many columns, in order of execution.

    Args:
        network: one of PROBLEM_NETWORKS.
        bits: of the weights.
        widest, narrowest: largest and smallest d.
    """
    grams, held_out = (kept_grams(network, split) for split in ("calibration", "validation"))
    fitting = {name: g for name, g in grams.items() if narrowest <= g.total.shape[1] <= widest}
    settings = LayerSettings(bits=bits)
    yield from posed_layers(folded_network(network), fitting, held_out, settings)
