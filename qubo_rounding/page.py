"""One page about one run: a single HTML file that opens from disk, without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qubo_rounding.evaluation import Evaluation
from qubo_rounding.figures import accuracy_figure, energy_figure, gram_flips_figure
from qubo_rounding.html_parts import picture, table, write_html
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.run_figures import course_figure, effort_figure, settling_figure, width_figure
from qubo_rounding.run_folder import LayerRecord, load_layer, problem_file
from qubo_rounding.run_summary import run_time

_READABLE_WIDTH = 96  # columns of the layer that is shown closely


def write_page(
    run: str | Path, path: str | Path | None = None, *, layer: str | None = None
) -> Path:
    """Write the page of a run folder that `qubo-rounding quantize` has finished; returns its path.

    Args:
        run: the folder, with its summary.json.
        path: of the page; None is report.html in the folder.
        layer: which to show closely; None is a layer of middling width whose problem is kept.

    Raises:
        ValueError: there is no summary, it is none of a run, or has no such layer.
    """
    run = Path(run)
    summary = _read(run / "summary.json")
    try:
        records = [LayerRecord(**layer) for layer in summary["layers"]]
        chosen = _chosen(run, records, layer)
        parts = _sections(summary, records, _close_up(run, chosen, records))
        title = f"{summary.get('model', run.name)}: {_bits(records)}"
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run / 'summary.json'} lacks what a run writes ({error}); run quantize again."
        ) from None
    return write_html(run / "report.html" if path is None else Path(path), title, parts)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no summary.json: give the folder of a finished run.")
    try:
        summary = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); run quantize again.") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{file} is a JSON {type(summary).__name__}, not a run's summary.")
    return summary


def _bits(records: Sequence[LayerRecord]) -> str:
    bits = sorted({record.bits for record in records})
    return f"{len(records)} layers at {', '.join(map(str, bits))} bits"


def _chosen(run: Path, records: Sequence[LayerRecord], layer: str | None) -> LayerRecord | None:
    """The layer to show closely: the one named, or one whose picture can be read."""
    if layer is not None:
        found = [record for record in records if record.name == layer]
        if not found:
            names = [record.name for record in records]
            raise ValueError(f"the run has no layer {layer!r}; it has {names}.")
        return found[0]
    drawable = [r for r in records if r.r > 1 and problem_file(run, r.name).is_file()]
    # About so many columns and rows are seen as a pattern, each for itself.
    return min(drawable, key=lambda r: abs(math.log(r.d / _READABLE_WIDTH)), default=None)


def _close_up(run: Path, record: LayerRecord | None, records: Sequence[LayerRecord]) -> list[str]:
    """Pictures of one layer, and of how layers were learned, where they were."""
    name = None if record is None else record.name
    parts = []
    if any("course" in one.stats for one in records):
        parts.append(picture("How the layers were learned", course_figure(records, name)))
    if record is None:
        return parts
    if "h_before" in record.stats:
        parts.append(picture(f"h(V) of {name}", settling_figure(record)))
    done, file = load_layer(run, record.name), problem_file(run, record.name)
    if done is None or not file.is_file():
        return parts
    problem = RoundingProblem.load(file)
    # Blocks learned afterwards have other levels than those that the folder keeps of each layer.
    if int((done.levels != problem.nearest()).sum()) == record.flips:
        figure = gram_flips_figure(problem, done.levels)
        parts.append(picture(f"Inputs and flipped weights of {name}", figure))
    return parts


def _sections(
    summary: Mapping[str, Any], records: Sequence[LayerRecord], close_up: Sequence[str]
) -> list[str]:
    networks = summary["networks"]
    parts = [table(networks)]
    evaluations = {
        str(row["network"]): Evaluation(
            row["images"], row.get("top1"), top1_interval=_pair(row.get("top1_interval"))
        )
        for row in networks
        if row.get("top1") is not None
    }
    if evaluations:
        parts.append(picture("Accuracy", accuracy_figure(evaluations, networks[0]["top1"])))
    ratios = _ratios(records)
    if ratios:
        parts.append(picture("Energy, layer by layer", energy_figure(ratios)))
        parts.append(picture("Energy and width", width_figure(records)))
    parts.append(picture("What was changed, and what it took", effort_figure(records)))
    parts += close_up
    parts += ["<h2>Layers</h2>", table([_layer_row(record) for record in records])]
    parts.append("<h2>Left as it was</h2>")
    skipped = [{"module": name, "why": why} for name, why in summary["skipped"].items()]
    parts.append(table(skipped) if skipped else "<p>Nothing.</p>")
    parts.append("<h2>How it was made</h2>")
    made = {**summary.get("arguments", {}), **summary.get("provenance", {})}
    made["time"] = run_time(summary)
    parts.append(table([{"what": key, "value": str(value)} for key, value in made.items()]))
    return parts


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _ratios(records: Sequence[LayerRecord]) -> dict[str, dict[str, float]]:
    """Energies relative to nearest: calibration, held-out images, lower bound; what there is."""
    found: dict[str, dict[str, float]] = {"rounded": {}, "rounded, held out": {}, "lower bound": {}}
    for record in records:
        ratios = (record.ratio, record.held_out_ratio, record.bound_ratio)
        for of_layers, ratio in zip(found.values(), ratios, strict=True):
            if ratio is not None and ratio > 0:
                of_layers[record.name or "model"] = ratio
    return {name: of_layers for name, of_layers in found.items() if of_layers}


def _layer_row(record: LayerRecord) -> dict[str, Any]:
    bound, gap = record.lower_bound, None
    if bound is not None and record.energy:
        gap = (record.energy - bound) / record.energy
    return {
        "layer": record.name or "model",
        "groups": record.g,
        "rows": record.r,
        "columns": record.d,
        "bits": record.bits,
        "energy": record.energy,
        "energy / nearest": record.ratio,
        "held out / nearest": record.held_out_ratio,
        "lower bound": bound,
        "gap": gap,
        "proven rows": record.proven_rows,
        "flipped": record.flipped,
        "seconds": record.seconds,
        "solver": record.solver,
    }
