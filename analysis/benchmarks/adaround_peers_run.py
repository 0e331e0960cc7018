"""Runs in the peers' environment: one layer by aimet-torch's AdaRound or brevitas' learned round.

    peers/bin/python adaround_peers_run.py aimet|brevitas FOLDER ITERATIONS True|False

Reads FOLDER/given.safetensors (inputs, weight, bias) and writes found.safetensors: the weight on
its grid, its levels and scale, the seconds taken. The last argument says whether ReLU6 follows.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32


def by_aimet(
    model: nn.Sequential, inputs: Tensor, folder: Path, iterations: int
) -> tuple[Tensor, Tensor]:
    """The soft weight that AIMET returns, and its scale (rows,)."""
    library = torch.library.Library("torchvision", "DEF")  # what the CPU build has not declared
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from aimet_torch import common
    from aimet_torch.adaround import Adaround, AdaroundParameters

    loader = DataLoader(inputs, batch_size=BATCH)  # pyright: ignore[reportArgumentType]
    parameters = AdaroundParameters(
        data_loader=loader,
        num_batches=len(loader),
        default_num_iterations=iterations,
        forward_fn=lambda m, x: m(x),
    )
    config = Path(common.__path__[0]) / "quantsim_config"
    captured: dict[str, Tensor] = {}
    export = Adaround._export_encodings_to_json.__func__

    def keep_scale(cls: type, path: str, prefix: str, simulation: Any) -> None:
        quantiser = simulation.model[0].param_quantizers["weight"]
        captured["scale"] = quantiser.get_scale().detach().flatten()
        export(cls, path, prefix, simulation)

    Adaround._export_encodings_to_json = classmethod(keep_scale)
    rounded = Adaround.apply_adaround(
        model,
        inputs[:1],
        parameters,
        str(folder),
        "aimet",
        default_param_bw=4,
        default_quant_scheme="tf",
        default_config_file=str(config / "default_config_per_channel.json"),
    )
    return rounded[0].weight.detach(), captured["scale"]


def by_brevitas(
    model: nn.Sequential, inputs: Tensor, folder: Path, iterations: int
) -> tuple[Tensor, Tensor]:
    """The weight on its grid by brevitas' learned round with its hard sigmoid, and its scale."""
    del folder
    from brevitas import nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat
    from brevitas_examples.common.learned_round.learned_round_trainer import (
        LearnedRoundTrainer,
        get_blocks,
    )
    from brevitas_examples.imagenet_classification.ptq import learned_round_utils as learned

    plain: Any = model[0]
    layer: Any = qnn.QuantConv2d(
        plain.in_channels,
        plain.out_channels,
        1,
        weight_quant=Int8WeightPerChannelFloat,
        weight_bit_width=4,
    )
    layer.load_state_dict(plain.state_dict(), strict=False)
    quantised = nn.Sequential(layer).eval()
    options = Namespace(
        learned_round_lr_scheduler=None,
        learned_round_lr=1e-3,
        learned_round_loss="regularised_mse",
        learned_round_batch_size=BATCH,
        learned_round_iters=iterations,
        learned_round="hard_sigmoid",
    )
    config = learned.parse_args_to_dataclass(options)
    config.training_args.use_amp = False  # its float16 is of no use on a CPU
    config.training_args.losses_args[0].kwargs = {"max_count": iterations}
    data = TensorDataset(inputs, torch.zeros(len(inputs)))
    LearnedRoundTrainer(config=config).train(
        model=quantised,
        model_forward=learned.vision_forward,
        block_forward=learned.vision_block_forward,
        data_loader=DataLoader(data, batch_size=BATCH),
        cache=learned.CacheVision(),
        get_blocks_fn=lambda m: get_blocks(m, learned.is_layer),
        keep_gpu=True,
    )
    weight: Any = layer.quant_weight()
    return weight.value.detach(), weight.scale.detach().flatten()


def main(peer: str, folder: Path, iterations: int, has_relu6: bool) -> None:
    """Round the layer that lies in the folder."""
    torch.manual_seed(0)
    given = load_file(folder / "given.safetensors")
    weight = given["weight"]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight.data, layer.bias.data = weight, given["bias"]  # pyright: ignore
    model = nn.Sequential(layer, *([nn.ReLU6()] if has_relu6 else [])).eval()
    rounding = {"aimet": by_aimet, "brevitas": by_brevitas}[peer]
    began = time.perf_counter()
    found, scale = rounding(model, given["inputs"], folder, iterations)
    seconds = time.perf_counter() - began
    step = scale.reshape(-1, 1, 1, 1)
    levels = (found / step).round().clamp(-8, 7)  # AIMET's is soft: on the grid it is judged
    tensors = {"weight": levels * step, "levels": levels, "scale": scale}
    tensors["seconds"] = torch.tensor(seconds)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "found.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True")
