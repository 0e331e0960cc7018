"""The guides' code runs as it stands, and the files they name are there."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qubo_rounding.guides

REPOSITORY = Path(__file__).parent.parent
GUIDES = {
    file.name: file.read_text()
    for file in sorted(resources.files(qubo_rounding.guides).iterdir(), key=lambda file: file.name)
    if file.name.endswith(".md")
}


def code_of(guide: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDES[guide], re.DOTALL)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = np.random.default_rng(0)
    for label in "abcde":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(blocks: list[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "guide", "exec"), names)


def test_a_model_and_images(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, *rest = code_of("a_model_and_256_images.md")
    (photographs / "my_model.py").write_text(model)
    run(rest)
    assert "agreement=" in capsys.readouterr().out
    assert (photographs / "runs" / "mine" / "layers").is_dir()
    run(rest)  # as the guide promises, it goes on where it was


def test_a_dimod_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    run(code_of("a_dimod_sampler.md"))
    assert "proven 1.0" in capsys.readouterr().out


@pytest.mark.parametrize("guide", GUIDES)
def test_files_that_are_named_are_there(guide: str) -> None:
    named = re.findall(r"`((?:tests|analysis)/[\w/.]+|test_\w+\.py)`", GUIDES[guide])
    if not (REPOSITORY / "analysis").is_dir():
        pytest.skip("the package is installed without its repository")
    there = [REPOSITORY / ("tests" if name.startswith("test_") else "") / name for name in named]
    assert [str(path) for path in there if not path.exists()] == []


def test_the_package_shows_every_guide() -> None:
    included = re.findall(r"include:: (\w+\.md)", qubo_rounding.guides.__doc__ or "")
    assert sorted(included) == sorted(GUIDES)


@pytest.mark.skipif(not (REPOSITORY / "analysis").exists(), reason="the analysis is not installed")
def test_the_numbers_tried_and_lost_are_those_measured() -> None:
    from analysis.rows import read_markdown

    measured = read_markdown("what_holds")
    assert len(measured) > 10
    for row in measured:
        told = " | ".join(row[name] for name in ("heading", "what", "tried", "lost"))
        assert f"| {told} |" in GUIDES["what_you_can_rely_on.md"]
