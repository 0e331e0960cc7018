"""Flat rows of what was measured, with their provenance."""

from __future__ import annotations

from dataclasses import dataclass

from qubo_rounding.means import quotient
from qubo_rounding.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class Record(Provenance):
    """One solver on one problem; energies are sums over rows, output^2 per position.

    Args:
        problem: its name.
        calibration: the name of the calibration set that its Gram is from; may be empty.
        fingerprint: SHA-256 of the problem's tensors.
        g, r, d: its shape.
        solver: the name it was given.
        configuration: repr of the solver, with every hyperparameter.
        seed: of its random numbers.
        energy: of the levels found, scored here in float64; None where refused.
        energy_nearest: of nearest rounding.
        ratio: energy / energy_nearest; None where refused or where nearest has energy 0.
        held_out, held_out_nearest: the same energies on held-out images; None without any.
        lower_bound: sum of the rows' lower bounds by this solver; None unless every row has one.
        proven_rows: rows that this solver proved optimal.
        best_bound: sum over rows of the highest lower bound that any solver of the comparison
            gives; the optimum where all rows are proven. None unless every row has one.
        over_bound: energy / best_bound; None without a positive bound.
        known_rows: rows whose optimum some solver of the comparison proved.
        exact_rows: those of them that this solver solved, to the optimum's energy.
        proven_by: the solvers that proved them, joined by " + ".
        bits_of_optimum: share of the undecided weights of the known rows that have the level of
            the optimum; None without any.
        bits_of_relaxation: share of the undecided weights that have AdaRound's level, same seed;
            None where AdaRound was not among the solvers.
        seconds: the solver's wall time, without compilation; None where refused.
        refused: why the solver refused the problem; empty where it did not.
    """

    problem: str
    calibration: str = ""
    fingerprint: str
    g: int
    r: int
    d: int
    solver: str
    configuration: str
    seed: int
    energy: float | None = None
    energy_nearest: float
    ratio: float | None = None
    held_out: float | None = None
    held_out_nearest: float | None = None
    lower_bound: float | None = None
    proven_rows: int = 0
    best_bound: float | None = None
    over_bound: float | None = None
    known_rows: int = 0
    exact_rows: int = 0
    proven_by: str = ""
    bits_of_optimum: float | None = None
    bits_of_relaxation: float | None = None
    seconds: float | None = None
    refused: str = ""

    @property
    def held_out_ratio(self) -> float | None:
        """Held-out energy relative to nearest's; None without."""
        return quotient(self.held_out, self.held_out_nearest)

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        """What the row measures: problem, calibration, solver, its configuration, seed."""
        return self.problem, self.calibration, self.solver, self.configuration, self.seed


@dataclass(frozen=True, kw_only=True)
class NetworkRecord(Provenance):
    """One way to round one whole network, judged by images that were not used for it.

    Args:
        network: its name.
        calibration: the name of the images that it was calibrated on; may be empty.
        fingerprint: SHA-256 of the network's tensors, and of the images that calibrate and judge.
        method: the name it was given.
        configuration: repr of the method, with every hyperparameter.
        seed: of its random numbers.
        layers, weights: how many were rounded.
        ratio: energy of a layer relative to nearest rounding of the same problem, geometric mean
            over the layers; None where one has no error.
        held_out_ratio: the same on held-out images; None without any.
        rows, proven_rows: of all layers; those proven optimal.
        images: that judge.
        float_loss, loss: task loss of the float and of the rounded network, mean cross-entropy of
            the labels in nats; None without labels.
        float_top1, top1: share of images whose label has the largest logit; None without labels.
        agreement: share of images on which the float network gives the same first answer.
        kl: mean over images of KL(softmax(float) || softmax(rounded)), nats.
        solver_seconds: wall time in the solver or reconstruction, over all layers.
        seconds: wall time of it all but the judging; None where a run was resumed.
    """

    network: str
    calibration: str = ""
    fingerprint: str
    method: str
    configuration: str
    seed: int
    layers: int
    weights: int
    ratio: float | None = None
    held_out_ratio: float | None = None
    rows: int
    proven_rows: int = 0
    images: int
    float_loss: float | None = None
    loss: float | None = None
    float_top1: float | None = None
    top1: float | None = None
    agreement: float | None = None
    kl: float | None = None
    solver_seconds: float
    seconds: float | None = None

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        """What the row measures: network, calibration, method, its configuration, seed."""
        return self.network, self.calibration, self.method, self.configuration, self.seed
