"""One page about one run: a single HTML file that opens from disk, without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from qubo_rounding.atomic import atomic_path
from qubo_rounding.evaluation import Evaluation
from qubo_rounding.figures import STYLE, accuracy_figure, energy_figure
from qubo_rounding.run_figures import effort_figure, width_figure
from qubo_rounding.run_folder import LayerRecord

_READABLE = 60  # pixels an inch of a picture on small screens, which scroll it
_PERCENT = frozenset({"top1", "top5", "agreement", "float_iou", "flipped"})  # shares, by column


def write_page(run: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run folder that `qubo-rounding quantize` has finished; returns its path.

    Args:
        run: the folder, with its summary.json.
        path: of the page; None is report.html in the folder.

    Raises:
        ValueError: there is no summary, or it is none of a run.
    """
    run = Path(run)
    summary = _read(run / "summary.json")
    try:
        records = [LayerRecord(**layer) for layer in summary["layers"]]
        body = "\n".join(_sections(summary, records))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{run / 'summary.json'} lacks what a run writes ({error}); run quantize again."
        ) from None
    title = html.escape(f"{summary.get('model', run.name)}: {_bits(records)}")
    template = resources.files("qubo_rounding").joinpath("page_template.html").read_text()
    target = run / "report.html" if path is None else Path(path)
    with atomic_path(target) as temporary:
        temporary.write_text(Template(template).substitute(title=title, body=body))
    return target


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


def _sections(summary: Mapping[str, Any], records: Sequence[LayerRecord]) -> list[str]:
    networks = summary["networks"]
    parts = [_table(networks)]
    evaluations = {
        str(row["network"]): Evaluation(
            row["images"], row.get("top1"), top1_interval=_pair(row.get("top1_interval"))
        )
        for row in networks
        if row.get("top1") is not None
    }
    if evaluations:
        parts.append(_picture("Accuracy", accuracy_figure(evaluations, networks[0]["top1"])))
    ratios = _ratios(records)
    if ratios:
        parts.append(_picture("Energy, layer by layer", energy_figure(ratios)))
        parts.append(_picture("Energy and width", width_figure(records)))
    parts.append(_picture("What was changed, and what it took", effort_figure(records)))
    parts += ["<h2>Layers</h2>", _table([_layer_row(record) for record in records])]
    parts.append("<h2>Left as it was</h2>")
    skipped = [{"module": name, "why": why} for name, why in summary["skipped"].items()]
    parts.append(_table(skipped) if skipped else "<p>Nothing.</p>")
    parts.append("<h2>How it was made</h2>")
    made = {**summary.get("arguments", {}), **summary.get("provenance", {})}
    made["seconds"] = f"{summary['seconds']:.0f}"
    parts.append(_table([{"what": key, "value": str(value)} for key, value in made.items()]))
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


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [column for column in columns if not column.endswith("_interval")]
    heads = "".join(_head(column, [row.get(column) for row in rows]) for column in columns)
    lines = [
        "<tr>" + "".join(_cell(row.get(key), key in _PERCENT) for key in columns) + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(column: str, values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    numbers = bool(known) and all(isinstance(value, (int, float)) for value in known)
    kind = ' class="number"' if numbers else ""
    return f'<th scope="col"{kind}><button>{html.escape(column)}</button></th>'


def _cell(value: Any, percent: bool) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return '<td data-value="">-</td>'
    if isinstance(value, (int, float)):
        shown = f"{100 * value:.1f} %" if percent else f"{value:,}"
        if isinstance(value, float) and not percent:
            shown = f"{value:.4g}"
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _picture(title: str, figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    name, least = html.escape(title), round(_READABLE * figure.get_figwidth())
    image = (
        f'<img alt="{name}" style="min-width: {least}px" src="data:image/svg+xml;base64,{data}">'
    )
    return f"<h2>{name}</h2><figure>{image}</figure>"
