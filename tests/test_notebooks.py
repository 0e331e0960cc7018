"""The notebooks are short, committed with their outputs, and run from top to bottom."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
CODE_CELLS = 15
MODE = "QUBO_ROUNDING_NOTEBOOKS"


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_all_four_are_there() -> None:
    assert [notebook.stem[0] for notebook in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_from_top_to_bottom(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert len(cells) < CODE_CELLS
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= (
        0 if notebook.stem.startswith("4") else 2
    )
    assert not any(output.get("name") == "stderr" for output in outputs)


@pytest.mark.skipif(os.environ.get(MODE) != "fast", reason=f"runs minutes; {MODE}=fast runs them")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    content = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(notebook.parent)}}
    nbclient.NotebookClient(content, timeout=600, resources=resources).execute()
    counts = [cell["execution_count"] for cell in content.cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
