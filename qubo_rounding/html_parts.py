"""Parts of an HTML page that opens from disk, without a network: tables that sort, pictures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from qubo_rounding.atomic import atomic_path
from qubo_rounding.figures import STYLE

_READABLE = 60  # pixels an inch of a picture on small screens, which scroll it
_PERCENT = frozenset({"top1", "top5", "agreement", "float_iou", "flipped"})  # shares, by column


def write_html(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write a page with this title, given as plain text, and these parts; returns the path."""
    template = resources.files("qubo_rounding").joinpath("page_template.html").read_text()
    with atomic_path(path) as temporary:
        page = Template(template).substitute(title=html.escape(title), body="\n".join(parts))
        temporary.write_text(page)
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by column name, the columns as they first appear; numbers sort as numbers."""
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


def picture(title: str, figure: Figure) -> str:
    """A heading, and the figure as inline SVG."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    name, least = html.escape(title), round(_READABLE * figure.get_figwidth())
    image = (
        f'<img alt="{name}" style="min-width: {least}px" src="data:image/svg+xml;base64,{data}">'
    )
    return f"<h2>{name}</h2><figure>{image}</figure>"
