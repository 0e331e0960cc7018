"""The page of a run: whole without a network, right in a browser, silent on nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from networks import batches, residual

from qubo_rounding.network import quantise
from qubo_rounding.page import write_page
from qubo_rounding.run_folder import LayerRecord
from qubo_rounding.solvers import AdaRound, Nearest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def record(number: int, **changes: Any) -> dict[str, Any]:
    layer = LayerRecord(
        name=f"layer<{number}>",
        g=1,
        r=4,
        d=9 * (number + 1),
        bits=4,
        energy=0.5 / (number + 1),
        energy_nearest=1.0,
        held_out=0.6,
        held_out_nearest=1.1,
        lower_bound=0.1 if number % 2 else None,
        proven_rows=0,
        flips=3,
        seconds=0.1 * number,
        solver="Gptq()",
    )
    return asdict(layer) | changes


def write_run(folder: Path, **changes: Any) -> Path:
    networks = [
        {"network": name, "top1": top1, "top5": 0.9, "agreement": 0.95, "kl": 0.1, "images": 100,
         "top1_interval": [top1 - 0.05, top1 + 0.05]}
        for name, top1 in (("float", 0.8), ("nearest", 0.3), ("result", 0.75))
    ]  # fmt: skip
    summary = {
        "model": "a & b",
        "networks": networks,
        "layers": [record(number) for number in range(3)],
        "skipped": {"norm": "it is <no> layer"},
        "seconds": 12.3,
        "provenance": {"package_version": "1"},
        "arguments": {"seed": 0},
    }
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary | changes))
    return folder


class Outline(HTMLParser):
    """Counts tags and keeps every address."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]


def outline(page: Path) -> Outline:
    found = Outline()
    found.feed(page.read_text())
    return found


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    page = write_page(write_run(tmp_path / "run"))
    found, text = outline(page), page.read_text()
    assert found.tags.count("img") == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in found.addresses)
    assert found.tags.count("table") == 4
    assert "a &amp; b: 3 layers at 4 bits" in text
    assert "layer&lt;0&gt;" in text
    assert "it is &lt;no&gt; layer" in text
    assert '<td data-value="">-</td>' in text  # a layer without a bound
    assert "75.0 %" in text
    assert page.read_text() == write_page(tmp_path / "run").read_text()


def test_a_layer_is_shown_closely(tmp_path: Path) -> None:
    solver = AdaRound(iterations=40)
    result = quantise(residual(), batches(), solver=solver, run=tmp_path / "run")
    layers = [asdict(one) for one in result.records]
    write_run(tmp_path / "run", layers=layers)
    text = write_page(tmp_path / "run").read_text()
    for title in ("How the layers were learned", "h(V) of ", "Inputs and flipped weights of "):
        assert f"<h2>{title}" in text
    name = result.records[0].name
    named = write_page(tmp_path / "run", layer=name).read_text()
    assert f"<h2>Inputs and flipped weights of {name}</h2>" in named
    with pytest.raises(ValueError, match=r"no layer 'x'; it has \['"):
        write_page(tmp_path / "run", layer="x")


def test_levels_that_are_not_the_results_are_not_shown(tmp_path: Path) -> None:
    result = quantise(residual(), batches(), solver=Nearest(), run=tmp_path / "run")
    layers = [asdict(one) | {"flips": 1} for one in result.records]  # as blocks change them
    text = write_page(write_run(tmp_path / "run", layers=layers)).read_text()
    assert "flipped weights of" not in text


def test_shares_are_numbers_that_sort(tmp_path: Path) -> None:
    text = write_page(write_run(tmp_path / "run")).read_text()
    assert f'<td class="number" data-value="{3 / 36!r}">8.3 %</td>' in text  # flips of 4 rows of 9
    assert '<th scope="col" class="number"><button>flipped</button></th>' in text


def test_a_run_without_labels_has_no_accuracy(tmp_path: Path) -> None:
    networks = [{"network": name} for name in ("float", "nearest", "result")]
    layers = [record(0, held_out=None, held_out_nearest=None, energy_nearest=0.0, energy=0.0)]
    page = write_page(write_run(tmp_path / "run", networks=networks, layers=layers, skipped={}))
    assert outline(page).tags.count("img") == 1
    assert "<p>Nothing.</p>" in page.read_text()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no summary"):
        write_page(tmp_path)
    for content, message in (("{", "not JSON"), ("[]", "JSON list"), ("{}", "lacks")):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            write_page(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [record(0), record(1, bits="four")]},
        {"layers": None},
        {"skipped": ["norm"]},
        {"networks": 3},
        {"seconds": None},
    ],
    ids=["bits", "layers", "skipped", "networks", "seconds"],
)
def test_a_damaged_summary_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"summary\.json lacks what a run writes"):
        write_page(write_run(tmp_path, **changes))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it_and_tables_sort(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = write_page(write_run(tmp_path / "run"))
    probe = """
<script>
addEventListener("error", event => { document.title = "broken: " + event.message; });
addEventListener("load", () => {
  const heads = [...document.querySelectorAll("table")[1].querySelectorAll("th")];
  const column = heads.findIndex(head => head.textContent === "energy");
  const values = () => [...document.querySelectorAll("table")[1].tBodies[0].rows]
    .map(row => Number(row.cells[column].dataset.value));
  const before = values();
  heads[column].querySelector("button").click();
  const up = values();
  heads[column].querySelector("button").click();
  const loaded = [...document.images].every(image => image.naturalWidth > 0);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.seen = JSON.stringify({before, up, down: values(), loaded, wide});
});
</script></body>"""
    page.write_text(page.read_text().replace("</body>", probe))
    for width in (1200, 500):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, page.as_uri()], capture_output=True, text=True, timeout=120
        )
        shown = re.search(r'data-seen="([^"]*)"', done.stdout)
        assert shown, done.stdout[-500:] + done.stderr[-500:]
        seen = json.loads(shown[1].replace("&quot;", '"'))
        assert "<title>broken" not in done.stdout
        assert seen["up"] == sorted(seen["before"])
        assert seen["down"] == sorted(seen["before"], reverse=True)
        assert seen["loaded"]
        assert not seen["wide"]
