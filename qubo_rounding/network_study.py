"""What a comparison of whole networks is made of, and the folder that keeps what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.evaluation import Evaluation, evaluate, predict
from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.passes import input_batches
from qubo_rounding.record_files import read_records, write_records
from qubo_rounding.records import NetworkRecord
from qubo_rounding.relaxed.reconstruction import Reconstruction
from qubo_rounding.solvers import Solver
from qubo_rounding.solvers.auto import DEFAULT_SOLVER

NETWORK_RECORDS = "networks.csv"

Cell = tuple[str, str, str, str, int]  # network, calibration, method, its configuration, seed


@dataclass(frozen=True)
class NetworkMethod:
    """One way to round a network; its repr is the configuration that goes into records.

    Args:
        solver, reconstruction, finish, settings, calibration: as for `quantise`.
    """

    solver: Solver | None = None
    reconstruction: Reconstruction | None = None
    finish: ActivationFinish | None = None
    settings: LayerSettings = field(default_factory=LayerSettings)
    calibration: Literal["sequential", "independent"] = "sequential"

    def __post_init__(self) -> None:
        if self.solver is None and self.reconstruction is None:
            object.__setattr__(self, "solver", DEFAULT_SOLVER)  # named in the records, too


@dataclass(frozen=True, eq=False)
class NetworkCase:
    """A network of a comparison, the images it may be calibrated on and those that judge.

    Args:
        name: of the network.
        model: the float network, a classifier in eval mode.
        calibrations: batches by the name of the set, each to be read more than once; "" where
            there is one.
        judges: batches that judge, to be read more than once; used for nothing else.
        labels: int64 (n,) of the judges; None where unknown.
        held_out: batches for held-out energies, to be read more than once; empty without any.
    """

    name: str
    model: nn.Module
    calibrations: Mapping[str, Iterable[Any]]
    judges: Iterable[Any]
    labels: Tensor | None = None
    held_out: Iterable[Any] = ()

    @cached_property
    def float_logits(self) -> Tensor:
        """The float network's answers to the judges."""
        return predict(self.model, self.judges)

    @cached_property
    def float_evaluation(self) -> Evaluation:
        """How good they are."""
        return evaluate(self.float_logits, self.labels)

    def fingerprint(self, calibration: str) -> str:
        """SHA-256 of the network, of the images that calibrate, judge and are held out.

        Not of what the network answers: that differs in its last bits between numbers of threads,
        and a study goes on with any.
        """
        parts: dict[str, Iterable[Tensor]] = {
            "network": self.model.state_dict().values(),
            "calibration": input_batches(self.calibrations[calibration]),
            "judges": input_batches(self.judges),
            "held out": input_batches(self.held_out) if self.held_out else [],
            "labels": [] if self.labels is None else [self.labels],
        }
        digests = [f"{name} {Fingerprint(tensors)}" for name, tensors in parts.items()]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class NetworkStudy:
    """What was measured on whole networks before, and where it is kept; nowhere without a folder.

    Args:
        folder: made if it is not there; None keeps nothing.

    Raises:
        ValueError: its records are not readable.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder)
        there = []
        if self._folder is not None and (self._folder / NETWORK_RECORDS).exists():
            there = read_records(self._folder / NETWORK_RECORDS, NetworkRecord)
        self._records = {record.cell: record for record in there}

    def find(self, cell: Cell, fingerprint: str) -> NetworkRecord | None:
        """The record of a cell; None where it is still to be measured.

        Raises:
            CrossCheckError: it is of other data.
        """
        record = self._records.get(cell)
        if record is not None and record.fingerprint != fingerprint:
            raise CrossCheckError(
                f"{self._folder} holds network {cell[0]!r} on other data "
                f"({record.fingerprint[:8]}, not {fingerprint[:8]}); name the calibration sets, or "
                "choose another folder."
            )
        return record

    def keep(self, record: NetworkRecord) -> None:
        """Add a record, and write all."""
        self._records[record.cell] = record
        if self._folder is not None:
            write_records(
                self._folder / NETWORK_RECORDS, list(self._records.values()), NetworkRecord
            )

    def run(self, cell: Cell) -> Path | None:
        """The run folder of a cell; None where nothing is kept."""
        if self._folder is None:
            return None
        return self._folder / "runs" / hashlib.sha256(repr(cell).encode()).hexdigest()[:32]
