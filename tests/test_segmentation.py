"""Dense answers are judged pixel by pixel, and networks that give them are rounded like others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from qubo_rounding.cli import app
from qubo_rounding.segmentation import evaluate_dense

SOURCE = Path(__file__)


class Segmenter(nn.Module):
    """Dilated branches, a pooled branch, a head, brought to the image's size, as DeepLab's are."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.branches = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=k, dilation=k) for k in (1, 2))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size, x = x.shape[-2:], self.stem(x)
        context = F.interpolate(self.pooled(x), x.shape[-2:])
        joined = torch.cat([*(branch(x).relu() for branch in self.branches), context], dim=1)
        return {"out": F.interpolate(self.head(joined), size, mode="bilinear")}


def segmenter() -> tuple[nn.Module, dict[str, int]]:
    return Segmenter().eval(), {"size": 16, "resize": 16}


def images(seed: int = 1) -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_scores_are_those_of_loops_over_pixels() -> None:
    model, other = Segmenter().eval(), Segmenter().eval()
    with torch.no_grad():
        other.head.weight.add_(0.1 * torch.randn(4, 12, 1, 1, generator=torch.Generator()))
    x = images()
    labels = torch.randint(0, 3, (3, 16, 16), generator=torch.Generator().manual_seed(2))
    labels[:, :3] = 255
    batches = [(x[:2], labels[:2]), (x[2:], labels[2:])]
    found = evaluate_dense(other, batches, float_model=model)

    with torch.no_grad():
        logits, wanted = other(x)["out"].double(), model(x)["out"].double()
    chosen, theirs = logits.argmax(1), wanted.argmax(1)

    def iou(labels: Tensor) -> float:
        shares = []
        for c in range(4):
            judged = labels != 255
            mine, its = (chosen == c) & judged, labels == c
            if bool((mine | its).any()):
                shares.append(int((mine & its).sum()) / int((mine | its).sum()))
        return sum(shares) / len(shares)

    right = (chosen == labels)[labels != 255]
    assert found.images == 3
    assert found.pixel_accuracy == pytest.approx(float(right.double().mean()))
    assert found.mean_iou == pytest.approx(iou(labels))
    assert found.agreement == pytest.approx(float((chosen == theirs).double().mean()))
    assert found.float_iou == pytest.approx(iou(theirs))
    p, q = wanted.softmax(1), logits.softmax(1)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)


def test_unlabelled_images_are_judged_by_the_float_network_alone() -> None:
    model = Segmenter().eval()
    assert evaluate_dense(model, [images()]).agreement is None
    found = evaluate_dense(model, [images()], float_model=model)
    assert (found.pixel_accuracy, found.agreement, found.float_iou, found.kl) == (None, 1, 1, 0)


def test_bad_input_is_named() -> None:
    model, x = Segmenter().eval(), images()
    with pytest.raises(ValueError, match="no images"):
        evaluate_dense(model, [])
    with pytest.raises(ValueError, match=r"returns \(3, 3\); a segmenter's"):
        evaluate_dense(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [x])
    with pytest.raises(ValueError, match=r"labels have shape \(3, 4, 4\)"):
        evaluate_dense(model, [(x, torch.zeros(3, 4, 4))])
    with pytest.raises(ValueError, match="from 7 to 7"):
        evaluate_dense(model, [(x, torch.full((3, 16, 16), 7))])


def test_the_command_line_rounds_a_segmenter(tmp_path: Path) -> None:
    for number in range(6):
        pixels = images(number)[0].mul(40).add(128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    run = tmp_path / "run"
    options = ["--images", str(tmp_path), "--eval", str(tmp_path), "--bits", "8", "-o", str(run)]
    done = CliRunner().invoke(app, ["quantize", f"{SOURCE}:segmenter", *options])
    assert done.exit_code == 0, done.output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["top1"] is None
    assert 0.9 < summary["agreement"] <= 1
    assert 0.8 < summary["float_iou"] <= 1
    assert "float_iou" in done.output
