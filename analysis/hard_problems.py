"""What makes a rounding problem hard, and where nearest falls short: the Gram's spectrum.

    python -m analysis.hard_problems     # 2 minutes, 2 cores; after analysis.headline

Of every layer of EfficientNet-Lite0: how steeply the spectrum of its Gram matrix falls, beside the
gaps and energies that `analysis.headline` measured; and the share of the error energy that lies
along the strongest eigenvectors, for nearest rounding and for `auto`. Writes
results/hard_problems.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from analysis.correlation import rank_correlation
from analysis.entry import begin
from analysis.kit_problems import kit_problems
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import Auto, RoundingProblem, read_records

ROWS = 16
STRONGEST = 0.1  # of the eigenvectors


def spectrum_facts(problem: RoundingProblem) -> dict[str, float]:
    """Effective rank over width, and the logarithm of the condition number, means over groups.

    Groups that nothing flows into are left out.
    """
    values = torch.linalg.eigvalsh(problem.gram).clamp_min(0)
    values = values[values.amax(dim=1) > 0]
    effective = values.sum(dim=1) ** 2 / (values**2).sum(dim=1)
    tiny = values.amax(dim=1) * 1e-12
    condition = values.amax(dim=1) / values.amin(dim=1).clamp_min(tiny)
    return {
        "effective rank / d": float((effective / problem.d).mean()),
        "log10 condition": float(condition.log10().mean()),
    }


def strong_share(problem: RoundingProblem, levels: Tensor) -> float:
    """Share of the energy e'Ge along the strongest tenth of the eigenvectors."""
    values, vectors = torch.linalg.eigh(problem.gram)
    along = (problem.errors(levels) @ vectors) ** 2 * values.unsqueeze(1)
    strongest = max(1, round(STRONGEST * problem.d))
    return float(along[..., -strongest:].sum() / along.sum())


def main() -> None:
    """One line a layer, the correlations below."""
    records = read_records(RESULTS / "headline.csv")
    found = {(r.problem, r.solver): r for r in records}
    rows = []
    for posed in kit_problems("efficientnet_lite0", 4, widest=4608):
        problem = posed.rows(ROWS).problem
        best = found.get((posed.layer, "auto, best"))
        if best is None:
            raise SystemExit(f"results/headline.csv lacks {posed.layer}; run analysis.headline.")
        if best.over_bound is None:  # more columns than images: no bound above 0
            continue
        levels = Auto("fast").solve(problem).levels
        row: dict[str, Any] = {"layer": posed.layer, "d": problem.d}
        row |= spectrum_facts(problem)
        row["nearest / best"] = 1 / (best.ratio or 1)
        row["gptq / best"] = (found[posed.layer, "gptq"].ratio or 1) / (best.ratio or 1)
        row["AdaRound / best"] = (found[posed.layer, "AdaRound"].ratio or 1) / (best.ratio or 1)
        row["best / bound"] = best.over_bound
        row["strongest tenth, nearest"] = strong_share(problem, problem.nearest())
        row["strongest tenth, auto"] = strong_share(problem, levels)
        rows.append(row)
    facts = ("d", "effective rank / d", "log10 condition")
    hardness = ("nearest / best", "gptq / best", "AdaRound / best", "best / bound")
    lines = [
        f"- {fact} against {hard}: "
        + str(rank_correlation([row[fact] for row in rows], [row[hard] for row in rows]))
        for fact in facts
        for hard in hardness
    ]
    before, after = (
        sum(row[f"strongest tenth, {who}"] for row in rows) / len(rows)
        for who in ("nearest", "auto")
    )
    closing = "\n".join(
        [
            f"Of nearest's error energy {before:.0%} lies along the strongest tenth of the "
            f"eigenvectors, of auto's {after:.0%} (means over layers).",
            "",
            "Rank correlations over layers, with 95 % intervals:",
            "",
            *lines,
        ]
    )
    write_markdown("hard_problems", rows, closing)


if __name__ == "__main__":
    begin(__doc__)
    main()
