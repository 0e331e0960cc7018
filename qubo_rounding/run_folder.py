"""The folder of a quantisation run: what is finished stays finished, wherever the run is killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.atomic import atomic_path
from qubo_rounding.kept_files import differing_keys, file_name, keep, kept
from qubo_rounding.layers import Layer, bias_of, weight_of
from qubo_rounding.means import quotient
from qubo_rounding.problem import RoundingProblem

_SETTINGS = "settings.json"
_SMALL = 2**17  # elements of a Gram matrix: 1 MiB a layer


@dataclass(frozen=True)
class LayerRecord:
    """What is known of one rounded layer; energies are sums over rows, output^2 per position.

    Args:
        name: of the layer.
        g, r, d: its shape.
        bits: of its grid.
        energy: of the levels chosen, on the calibration data.
        energy_nearest: of nearest rounding on the same problem.
        held_out, held_out_nearest: the same on held-out data; None without.
        lower_bound: sum of the rows' lower bounds; None unless every row has one.
        proven_rows: rows proven optimal.
        flips: weights whose level differs from nearest.
        seconds: the solver's time.
        solver: repr of the solver (of the member that accepted, for composites).
        stats: what the solver told.
    """

    name: str
    g: int
    r: int
    d: int
    bits: int
    energy: float
    energy_nearest: float
    held_out: float | None
    held_out_nearest: float | None
    lower_bound: float | None
    proven_rows: int
    flips: int
    seconds: float
    solver: str
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Energy relative to nearest; None where nearest is without error."""
        return quotient(self.energy, self.energy_nearest)

    @property
    def held_out_ratio(self) -> float | None:
        """The same on held-out data; None without."""
        return quotient(self.held_out, self.held_out_nearest)

    @property
    def bound_ratio(self) -> float | None:
        """The lower bound relative to nearest's energy; None without."""
        return quotient(self.lower_bound, self.energy_nearest)

    @property
    def flipped(self) -> float:
        """Share of the weights whose level differs from nearest."""
        return self.flips / (self.g * self.r * self.d)


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """A rounded layer: its levels with their grid, the weight they stand for, the bias shift.

    Args:
        levels: int16 (g, r, d).
        scale, zero_point: float64 (g, r, 1) or (g, r, d).
        bias_shift: float64 (g, r), added to the bias.
        record: its record.
    """

    levels: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_shift: Tensor
    record: LayerRecord

    @property
    def weight(self) -> Tensor:
        """(g, r, d) float64 weights on the grid."""
        return self.scale * (self.levels.double() - self.zero_point)


def install(model: nn.Module, rounded: nn.Module, layer: Layer, done: RoundedLayer) -> None:
    """Write a rounded layer into the rounded network, in place: suspended passes hold its tensors.

    Args:
        model: the float network, whose biases the shifts are added to.
        rounded: its copy.
        layer: the layer.
        done: what it is to be.
    """
    weight_of(rounded, layer).data.copy_(layer.weight(done.weight))
    bias = bias_of(rounded, layer)
    if bias is not None:
        before = bias_of(model, layer)
        start = torch.zeros_like(bias) if before is None else before
        bias.copy_(
            (start.double() + done.bias_shift.flatten()) if bool(done.bias_shift.any()) else start
        )


class RunFolder:
    """Finished layers of one run, one file each, and the settings they were made with.

    What is kept first binds the folder to its settings: a run that fails before leaves nothing.

    Args:
        path: the folder; made where it is missing.
        settings: everything that decides about the result, JSON-serialisable.

    Raises:
        ValueError: the folder belongs to a run with other settings, or is no run folder.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._settings = json.loads(json.dumps(dict(settings)))
        self._settings_file = self.path / _SETTINGS
        if self._settings_file.exists():
            _check_same(self.path, _read_settings(self._settings_file), self._settings)
        elif self.path.exists() and not all(p.name.startswith(".") for p in self.path.iterdir()):
            # Hidden files do not count: a run killed early may have left a temporary one.
            raise ValueError(
                f"{self.path} is not empty and holds no run; give a new or an empty folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file of the run in one step; returns its path."""
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")
        return self.path / name

    def bind(self) -> None:
        """Make the folder that of the run with these settings, before anything is kept in it."""
        if not self._settings_file.exists():
            self.write_json(self._settings_file.name, self._settings)

    def save(self, layer: RoundedLayer, problem: RoundingProblem) -> None:
        """Keep a finished layer, and its problem where that is small: others may solve it."""
        self.bind()
        if problem.gram.numel() <= _SMALL:
            path = problem_file(self.path, layer.record.name)
            path.parent.mkdir(exist_ok=True)
            problem.save(path)
        (self.path / "layers").mkdir(exist_ok=True)
        tensors = {
            f.name: getattr(layer, f.name) for f in fields(RoundedLayer) if f.name != "record"
        }
        record = json.dumps(asdict(layer.record))
        keep(_layer_file(self.path, layer.record.name), tensors, {"record": record})

    def load(self, name: str) -> RoundedLayer | None:
        """A finished layer, or None where it is still to be done.

        Raises:
            ValueError: its file is damaged.
        """
        return load_layer(self.path, name)


def is_begun(run: Path) -> bool:
    """Whether a run has kept something in a folder: another goes on from there."""
    return (run / _SETTINGS).exists()


def load_layer(run: Path, name: str) -> RoundedLayer | None:
    """A finished layer of a run folder, or None where it is still to be done.

    Raises:
        ValueError: its file is damaged.
    """
    path = _layer_file(run, name)
    return _read_layer(path) if path.exists() else None


def finished_records(run: Path) -> list[LayerRecord]:
    """What is known of every finished layer of a run folder, by name; none where it is missing.

    Where blocks are learned afterwards, as the layers were before.

    Raises:
        ValueError: a file is damaged.
    """
    paths = sorted((run / "layers").glob("*.safetensors"))
    return [_read_layer(path).record for path in paths]


def problem_file(run: Path, name: str) -> Path:
    """Where a run folder keeps the problem of a small layer, as its solver had it."""
    return run / "problems" / f"{file_name(name)}.npz"


def _read_layer(path: Path) -> RoundedLayer:
    with kept(path) as file:
        record = LayerRecord(**json.loads(file.metadata["record"]))
        return RoundedLayer(**file.tensors, record=record)


def _layer_file(run: Path, name: str) -> Path:
    return run / "layers" / f"{file_name(name)}.safetensors"


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text())
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is no settings file of a run; give a new or an empty folder.")
    return settings


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if differing := differing_keys(found, wanted):
        changes = "; ".join(
            f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} now" for k in differing
        )
        hint = (
            " The network's weights are others: where they are drawn at random, seed them."
            if differing == ["model"]
            else ""
        )
        raise ValueError(
            f"{path} holds a run with other settings ({changes}). Give a new folder, or the "
            f"settings of that run to resume it.{hint}"
        )
