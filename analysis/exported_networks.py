"""An exported network in onnxruntime, and as packed levels: the same answers, and how small.

    python -m analysis.exported_networks     # 5 minutes on 2 cores

EfficientNet-Lite0 and MobileNetV2 at 4 bits per channel, 64 calibration images, rounded by
`Auto("fast")`; judged on all of the kit's validation images. Writes results/exported_networks.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.entry import begin
from analysis.judged_networks import NETWORKS, JudgedNetwork
from analysis.rows import write_markdown
from qubo_rounding import LayerSettings, predict, quantise, reuse_freed_memory
from qubo_rounding.export import load_levels, save_levels, write_onnx

IMAGES, MIB = 64, 2**20


def in_onnxruntime(path: Path, batches: list[Any], basic: bool) -> Tensor:
    """The answers of an ONNX file, by basic optimisations alone or by all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"input": x.numpy()})[0] for x, _ in batches]
    return torch.cat([torch.from_numpy(answer) for answer in answers])


def measure(network: str, folder: Path) -> dict[str, Any]:
    """One line of the table."""
    judged, settings = JudgedNetwork.load(NETWORKS[network]), LayerSettings()
    result = quantise(judged.model, judged.spread(IMAGES), settings=settings, progress=True)
    example = judged.validation[0][0][:1]
    onnx = write_onnx(folder / "model.onnx", result, settings, example)
    packed = save_levels(folder / "levels.safetensors", result, settings)
    back = load_levels(folder / "levels.safetensors", judged.model, example)
    ours = result.model.state_dict()
    expected = predict(result.model, judged.validation)
    floats = sum(4 * tensor.numel() for tensor in ours.values())
    row: dict[str, Any] = {"network": network, "images": len(expected)}
    row |= {"float32, MiB": floats / MIB, "packed, MiB": packed / MIB}
    row |= {"ONNX, MiB": onnx.stat().st_size / MIB}
    row["levels come back"] = all(torch.equal(t, back.state_dict()[k]) for k, t in ours.items())
    for name, basic in (("basic", True), ("all", False)):
        found = in_onnxruntime(onnx, judged.validation, basic)
        error = (found - expected).norm(dim=1) / expected.norm(dim=1)
        row[f"same top-1, {name} optimisations"] = int(
            (found.argmax(1) == expected.argmax(1)).sum()
        )
        row[f"largest relative error, {name}"] = float(error.max())
    return row


if __name__ == "__main__":
    begin(__doc__)
    reuse_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_markdown("exported_networks", [measure(name, Path(folder)) for name in NETWORKS])
