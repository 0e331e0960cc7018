"""One layer by AIMET's AdaRound, by brevitas' and by ours: same scales, images and schedule.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install aimet-torch==2.42.0 brevitas==0.13.4 accelerate torch==2.13.0
    python -m analysis.benchmarks.adaround_peers --python peers/bin/python    # 25 minutes, 2 cores

The peers run in an environment of their own (adaround_peers_run.py) and choose their scales, on
which ours then rounds the same weights. Layers are EfficientNet-Lite0's, inputs the float
network's on the kit's calibration images; the error is the mean squared error of the layer's
output, behind its activation function where there is one, relative to nearest rounding on the same
grid, also on images that nobody learned from. Writes results/adaround_peers.md.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analysis.entry import described, need_kit
from analysis.kit_networks import kit_folder
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import (
    LayerSettings,
    fold_batch_norm,
    load_model,
    nearest_network,
    open_images,
    quantise,
    reuse_freed_memory,
)
from qubo_rounding.range_rules import Blocks, RangeRule
from qubo_rounding.relaxed.reconstruction import Reconstruction

# What follows, peers, iterations. brevitas learns a layer by itself, without what follows; AIMET
# takes half a second an iteration on the second layer.
LAYERS = {
    "_blocks.6._project_conv": (None, ("aimet", "brevitas"), 10_000),
    "_blocks.7._expand_conv": (nn.ReLU6(), ("aimet",), 1_000),
}
PATH = RESULTS / "adaround_peers.csv"
IMAGES, BATCH = 128, 32


@dataclass(frozen=True)
class GivenScales(RangeRule):
    """The scales that somebody else chose: float64 (g, r, 1)."""

    scale: Tensor

    def factor(self, blocks: Blocks, gram: Tensor | None) -> Tensor:
        """See `RangeRule.factor`."""
        return self.scale.reshape(blocks.scale.shape) / blocks.scale


def inputs_of(names: list[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The folded network, and the inputs of some of its layers for calibration and held-out."""
    pretrained, preprocessing = load_model("efficientnet_lite0")
    folder = kit_folder() / "images" / "calibration"
    batches = list(open_images(folder, preprocessing, limit=2 * IMAGES, batch_size=BATCH))
    model, _ = fold_batch_norm(pretrained, batches[0][0][:1])
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(_keeping(found[name]))
    with torch.no_grad():
        # every other image learns, so that both halves are spread over all classes
        for images, _ in batches:
            model(images)
    return model, {name: torch.cat(parts) for name, parts in found.items()}


def _keeping(kept: list[Tensor]) -> Callable[[nn.Module, tuple], None]:
    def keep(_: nn.Module, arguments: tuple) -> None:
        kept.append(arguments[0])

    return keep


def error(layer: nn.Module, rounded: nn.Module, x: Tensor) -> float:
    """Mean squared difference of the outputs, in float64."""
    with torch.no_grad():
        parts = [(layer(b) - rounded(b)).double().square().mean() for b in x.split(BATCH)]
    return float(torch.stack(parts).mean())


def compare(
    name: str, layer: nn.Sequential, x: Tensor, peer: str, python: Path, iterations: int
) -> dict[str, object]:
    """What a peer and ours make of a layer."""
    learned, held_out = x[::2].contiguous(), x[1::2].contiguous()
    convolution = layer[0]
    with tempfile.TemporaryDirectory() as folder:
        tensors = {"inputs": learned, "weight": convolution.weight, "bias": convolution.bias}
        given = Path(folder) / "given.safetensors"
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, given)
        script = Path(__file__).with_name("adaround_peers_run.py")
        command = [str(python), str(script), peer, folder, str(iterations), str(len(layer) > 1)]
        subprocess.run(command, check=True)
        theirs = load_file(Path(folder) / "found.safetensors")
    settings = LayerSettings(
        bias="keep", range_rule=GivenScales(theirs["scale"].double().reshape(1, -1, 1))
    )
    batches = list(learned.split(BATCH))
    began = time.perf_counter()
    ours = quantise(
        layer, batches, reconstruction=Reconstruction(iterations=iterations), settings=settings
    )
    seconds = time.perf_counter() - began
    peer_layer = nn.Sequential(nn.Conv2d(1, 1, 1), *list(layer)[1:])
    peer_layer[0].weight, peer_layer[0].bias = (
        nn.Parameter(theirs["weight"]),
        convolution.bias,
    )
    nearest = nearest_network(layer, batches[0], ours, settings)
    row: dict[str, object] = {"layer": name, "peer": peer, "iterations": iterations}
    for label, images in (("learned", learned), ("held out", held_out)):
        floor = error(layer, nearest, images)
        row[f"peer, {label}"] = error(layer, peer_layer, images) / floor
        row[f"ours, {label}"] = error(layer, ours.model, images) / floor
    row |= {"peer, seconds": float(theirs["seconds"]), "ours, seconds": seconds}
    bits = (ours.layers["0"].levels.flatten() == theirs["levels"].flatten().short()).double()
    return row | {"levels in common": float(bits.mean())}


def measure(python: Path) -> None:
    """Run what is not in the CSV yet: a row for each layer and peer."""
    reuse_freed_memory()
    done = {(row["layer"], row["peer"]) for row in read_rows(PATH)}
    model, inputs = inputs_of(list(LAYERS))
    for name, (activation, peers, iterations) in LAYERS.items():
        given = model.get_submodule(name)
        assert isinstance(given, nn.Conv2d)
        plain = nn.Conv2d(given.in_channels, given.out_channels, 1)
        plain.load_state_dict(given.state_dict())
        layer = nn.Sequential(plain, *([] if activation is None else [activation])).eval()
        for peer in peers:
            if (name, peer) not in done:
                row = compare(name, layer, inputs[name], peer, python, iterations)
                append_row(PATH, row)
                print(row, flush=True)


def render() -> None:
    """Write the table."""
    rows = [
        {key: value if key in ("layer", "peer") else float(value) for key, value in row.items()}
        for row in read_rows(PATH)
    ]
    write_markdown("adaround_peers", rows, "Errors are relative to nearest rounding.")


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of the peers' environment")
    options = parser.parse_args()
    need_kit(parser)
    measure(options.python)
    render()
