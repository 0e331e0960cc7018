"""The tables of results/task_loss.md, and what they say, from the CSV of analysis.task_loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from analysis.rows import RESULTS, read_rows, write_markdown
from qubo_rounding.report import markdown_table

PATH = RESULTS / "task_loss.csv"
SURE = 2.0  # standard errors of a paired difference
LEGEND = """\
Energies are relative to nearest, except for eq 12, whose energy foresees the change of the
calibration loss. Gap: energy under the own objective minus what no levels can undercut,
relative to that energy; 0 is proven. Losses are changes against the float network; KL is from
the float network's answers, and KL - optimum its mean paired difference (with standard error)
from the proven optimum of eq 20, all on held-out images. Where a method draws random numbers:
mean and standard deviation of three seeds."""


@dataclass(frozen=True)
class Group:
    """All rows of one network at one granularity."""

    network: str
    granularity: str
    rows: Sequence[dict[str, str]]

    @property
    def name(self) -> str:
        """In a sentence."""
        return f"{self.network} per {self.granularity}"

    def values(self, column: str, objective: str, solver: str) -> list[float]:
        """One number a seed; none where the method was not run."""
        at = (objective, solver)
        return [float(r[column]) for r in self.rows if (r["objective"], r["solver"]) == at]

    def mean(self, column: str, objective: str, solver: str) -> float:
        """Over the seeds."""
        return fmean(self.values(column, objective, solver))

    @property
    def best(self) -> dict[str, str]:
        """The row with the least energy under eq 13 among those that minimise it."""
        rows = (row for row in self.rows if row["objective"] == "eq 13")
        return min(rows, key=lambda row: float(row["eq 13"]))

    @property
    def is_proven(self) -> bool:
        """Is the best row an optimum of eq 13?"""
        return _gap(self.best) < 1e-8

    @property
    def relaxation(self) -> dict[str, str]:
        """The row of eq 21, which relaxes eq 20."""
        at = ("eq 20", "relaxation")
        return next(r for r in self.rows if (r["objective"], r["solver"]) == at)

    def parts(self) -> tuple[float, float, float]:
        """KL that the cross-entropy method adds under eq 13, eq 13 over eq 20, and as the first."""
        best, optimum = float(self.best["kl"]), self.mean("kl", "eq 20", "tree search")
        by_chance = [
            self.mean("kl", objective, "cross-entropy") for objective in ("eq 13", "eq 20")
        ]
        return by_chance[0] - best, best - optimum, by_chance[1] - optimum


def render() -> None:
    """Write results/task_loss.md."""
    groups = [
        Group(network, granularity, list(rows))
        for (network, granularity), rows in itertools.groupby(
            read_rows(PATH), key=lambda row: (row["network"], row["granularity"])
        )
    ]
    parts = [_reading(groups), LEGEND]
    for group in groups:
        images = f"{float(group.rows[0]['float_top1']):.1%} top-1 in float"
        parts.append(f"### {group.network}, a scale per {group.granularity}; {images}")
        parts.append(markdown_table(_lines(group)))
    write_markdown("task_loss", [_parts_line(group) for group in groups], "\n\n".join(parts))


def _parts_line(group: Group) -> dict[str, object]:
    """Table 2's difference between eq 13 and eq 20, taken apart; KL in thousandths."""
    solver_13, objective, solver_20 = (1000 * part for part in group.parts())
    best, relaxed = group.best, group.relaxation
    return {
        "first layer": group.name,
        "eq 13 - eq 20, both by cross-entropy": f"{solver_13 + objective - solver_20:+.2f}",
        "= solver of eq 13": f"{solver_13:+.2f}",
        "+ objective": f"{objective:+.2f} +- {1000 * float(best['kl_standard_error']):.2f}",
        "- solver of eq 20": f"{solver_20:+.2f}",
        "eq 13's best": "proven" if group.is_proven else f"by {best['solver']}",
        "relaxation - optimum of eq 20": f"{1000 * float(relaxed['kl_over_eq_20']):+.2f} +- "
        f"{1000 * float(relaxed['kl_standard_error']):.2f}",
    }


def _lines(group: Group) -> list[dict[str, object]]:
    """One line a method, its seeds taken together."""
    methods = dict.fromkeys((row["objective"], row["solver"]) for row in group.rows)
    return [_line(group, *method) for method in methods]


def _line(group: Group, objective: str, solver: str) -> dict[str, object]:
    rows = [r for r in group.rows if (r["objective"], r["solver"]) == (objective, solver)]
    nearest = {energy: group.mean(energy, "eq 20", "nearest") for energy in ("eq 13", "eq 20")}

    def cell(form: str, column: str, unit: float = 1.0) -> str:
        return _spread(form, [float(row[column]) / unit for row in rows])

    kl_error = 1000 * fmean(float(row["kl_standard_error"]) for row in rows)
    return {
        "objective": "-" if solver == "nearest" else objective,
        "solver": solver,
        "energy eq 13": cell(".4f", "eq 13", nearest["eq 13"]),
        "energy eq 20": cell(".4f", "eq 20", nearest["eq 20"]),
        "energy eq 12": cell("+.4f", "eq 12"),
        "gap": "-" if solver == "nearest" else f"{fmean(_gap(row) for row in rows):.1%}",
        "calibration loss": cell("+.4f", "calibration_loss"),
        "held-out loss": cell("+.4f", "loss"),
        "top-1, %": cell(".2f", "top1", 0.01),
        "agreement, %": cell(".2f", "agreement", 0.01),
        "KL x 1000": cell(".2f", "kl", 0.001),
        "KL - optimum": f"{cell('+.2f', 'kl_over_eq_20', 0.001)} ({kl_error:.2f})",
        "seconds": f"{fmean(float(row['seconds']) for row in rows):.2g}",
    }


def _spread(form: str, values: Sequence[float]) -> str:
    spread = stdev(values) if len(values) > 1 else 0.0
    mean = format(fmean(values), form)
    return f"{mean} +- {spread:{form.lstrip('+')}}" if spread > 0 else mean


def _gap(row: dict[str, str]) -> float:
    energy = float(row[row["objective"]])
    return (energy - float(row["bound"])) / abs(energy)


def _reading(groups: Sequence[Group]) -> str:
    """Sentences that only count and compare."""

    def excess(objective: str, solver: str, least: Callable[[Group], float]) -> str:
        ratios = [g.mean(objective, objective, solver) / least(g) - 1 for g in groups]
        return f"{min(ratios):.0%} to {max(ratios):.0%}"

    def where(condition: Callable[[Group], bool]) -> str:
        names = [g.name for g in groups if condition(g)]
        return f"{len(names)} of {len(groups)}" + (f" ({', '.join(names)})" if names else "")

    def best(g: Group) -> float:
        return float(g.best["eq 13"])

    def optimum(g: Group) -> float:
        return g.mean("eq 20", "eq 20", "tree search")

    def over(row: dict[str, str], sign: int) -> bool:
        return sign * float(row["kl_over_eq_20"]) > SURE * float(row["kl_standard_error"])

    def order(g: Group) -> bool:
        solver_13, objective, solver_20 = g.parts()
        return solver_13 + objective - solver_20 > 0

    return (
        "**Reading.** "
        f"Solver: the cross-entropy method ends {excess('eq 13', 'cross-entropy', best)} above the "
        "lowest energy known under eq 13, but only "
        f"{excess('eq 20', 'cross-entropy', optimum)} above the proven optimum under eq 20; on "
        + where(lambda g: g.mean("eq 13", "eq 13", "cross-entropy") > _at_optimum(g))
        + " its levels for eq 13 are worse under eq 13 itself than eq 20's optimum is. "
        f"The relaxation ends {excess('eq 20', 'relaxation', optimum)} above that optimum. "
        "Order: by cross-entropy, eq 13 has the larger KL, as in Table 2, on "
        + where(order)
        + "; the solver's part of that difference is larger than the objective's on "
        + where(lambda g: order(g) and g.parts()[0] > g.parts()[1])
        + f". Objective: the best levels for eq 13 have less KL than the optimum of eq 20, by more "
        f"than {SURE:.0f} standard errors, on "
        + where(lambda g: over(g.best, -1))
        + ", and more on "
        + where(lambda g: over(g.best, 1))
        + ". The relaxation has less KL than the optimum of the cost it relaxes on "
        + where(lambda g: over(g.relaxation, -1))
        + ", and more on "
        + where(lambda g: over(g.relaxation, 1))
        + "."
    )


def _at_optimum(group: Group) -> float:
    """Energy under eq 13 of the optimum of eq 20."""
    return group.mean("eq 13", "eq 20", "tree search")
