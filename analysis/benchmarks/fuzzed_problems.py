"""Problem files of every kind of wrongness through `solve`: no crash, and no wrong claim of proof.

    python -m analysis.benchmarks.fuzzed_problems --files 100000     # 20 minutes, 1 core

Small random problems, most of them changed: fields missing, of another kind, shape or order, NaN,
scales from 1e-30 to 1e30, indefinite, low above high, no rows, files cut or with flipped bits. Each
goes through the command `solve`, which has to end with a solution file or with exit code 2 and one
message. Where it claims proofs, all levels are tried, or those near where there are too many.
Writes results/fuzzed_problems.md.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer
from torch import Tensor
from tqdm import tqdm

from analysis.entry import described
from analysis.rows import write_markdown
from qubo_rounding.cli import solve
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution

SOLVERS = (
    "nearest",
    "stochastic:draws=8",
    "gptq",
    "k_best:width=8",
    "klein:samples=8",
    "descent",
    "annealing:sweeps=5,reads=2",
    "tabu:rounds=3",
    "cross_entropy:samples=16",
    "adaround:iterations=10",
    "tree_search",
    "enumeration:max_assignments=4096",
    "auto",
    "certified:sweeps=5,solver=descent",
)
WIDEST = 7  # all levels of a row are tried where its proof is checked
MOST_LEVELS = 100_000  # levels of a row beyond which only those near the claimed are tried
TINY = np.finfo(np.float64).tiny  # below it numbers have few digits, or one
TOLERANCE = 1e-7  # relative to the energy's own size
Arrays = dict[str, np.ndarray]
Random = np.random.Generator


def drawn_arrays(random: Random) -> Arrays:
    """The arrays of a problem that is as it should be."""
    g, r, d = (int(random.integers(1, end)) for end in (3, 4, WIDEST + 1))
    factor = random.standard_normal((g, d, int(random.integers(1, 2 * d + 1))))
    target = random.normal(0, 3, (g, r, d))
    width = int(random.integers(1, 3))
    low = np.floor(target).astype(np.int16) - (width - 1)
    arrays = {
        "gram": factor @ factor.transpose(0, 2, 1) / factor.shape[2],
        "target": target,
        "scale": random.uniform(0.01, 1, (g, r, 1)),
        "low": low,
        "high": (low + 2 * width - 1).astype(np.int16),
    }
    if random.random() < 0.3:
        arrays["linear"] = random.standard_normal((g, r, d))
        arrays["offset"] = random.standard_normal((g, r))
    return arrays


def _one(random: Random, arrays: Arrays) -> str:
    return str(random.choice(list(arrays)))


def dropped(random: Random, arrays: Arrays) -> None:
    """A field is missing."""
    del arrays[_one(random, arrays)]


def retyped(random: Random, arrays: Arrays) -> None:
    """A field of another kind of number, or of none."""
    name, kind = (
        _one(random, arrays),
        random.choice(["f2", "f4", ">f8", "i8", "u1", "c8", "U3", "?"]),
    )
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(str(kind))


def reshaped(random: Random, arrays: Arrays) -> None:
    """A field of another shape."""
    name = _one(random, arrays)
    array = arrays[name]
    changes: list[Callable[[], np.ndarray]] = [
        lambda: array[None],
        lambda: array[..., :-1],
        lambda: array[:0],
        lambda: array.T,
        lambda: array.ravel(),
        lambda: np.concatenate([array, array]),
    ]
    arrays[name] = changes[random.integers(len(changes))]()


def emptied(random: Random, arrays: Arrays) -> None:
    """No rows at all."""
    for name in arrays:
        if name != "gram":
            arrays[name] = arrays[name][:, :0]


def poisoned(random: Random, arrays: Arrays) -> None:
    """A number that is none, or too large."""
    name = _one(random, arrays)
    if arrays[name].dtype.kind == "f" and arrays[name].size:
        flat = arrays[name].reshape(-1)
        flat[random.integers(flat.size)] = random.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324])


def rescaled(random: Random, arrays: Arrays) -> None:
    """Everything tiny or huge."""
    name = str(random.choice(["gram", "scale", "target", "linear"]))
    if name in arrays:
        arrays[name] = arrays[name] * 10.0 ** random.integers(-30, 31)


def reordered(random: Random, arrays: Arrays) -> None:
    """Some low above high, or negative scales, or a Gram matrix that is indefinite."""
    which = random.integers(3)
    if which == 0:
        arrays["low"], arrays["high"] = arrays["high"], arrays["low"]
    elif which == 1:
        arrays["scale"] = -arrays["scale"]
    else:
        square = random.standard_normal(arrays["gram"].shape)
        arrays["gram"] = square + square.transpose(0, 2, 1)


def asymmetric(random: Random, arrays: Arrays) -> None:
    """A Gram matrix that is not symmetric, by much or by little."""
    noise = random.standard_normal(arrays["gram"].shape)
    arrays["gram"] = arrays["gram"] + noise * 10.0 ** random.integers(-16, 1)


def fixed(random: Random, arrays: Arrays) -> None:
    """Weights without a choice."""
    if arrays["low"].shape == arrays["high"].shape:
        arrays["high"] = np.where(
            random.random(arrays["low"].shape) < 0.5, arrays["low"], arrays["high"]
        )


def foreign(random: Random, arrays: Arrays) -> None:
    """An array more, or a meta that is no JSON."""
    arrays[str(random.choice(["extra", "meta", "levels"]))] = random.standard_normal(3)


CHANGES = (
    *(dropped, retyped, reshaped, emptied, poisoned, rescaled),
    *(reordered, asymmetric, fixed, foreign),
)


def written(random: Random, path: Path) -> str:
    """Write a file of the fuzz to a path; returns what was done to it."""
    arrays, done = drawn_arrays(random), []
    for _ in range(random.choice([0, 1, 1, 1, 2])):
        change = CHANGES[random.integers(len(CHANGES))]
        with contextlib.suppress(KeyError, ValueError, IndexError, TypeError):  # no longer so
            change(random, arrays)
            done.append(change.__name__)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    if random.random() < 0.1:
        content = bytearray(path.read_bytes())
        if random.random() < 0.5:
            content = content[: random.integers(len(content))]
            done.append("cut")
        else:
            for place in random.integers(len(content), size=random.integers(1, 20)):
                content[place] ^= 1 << random.integers(8)
            done.append("flipped bits")
        path.write_bytes(bytes(content))
    return " + ".join(done) or "unchanged"


def tried_levels(row: RoundingProblem, claimed: Tensor) -> np.ndarray:
    """(n, d) all levels of a row; of wide ranges those no more than two away from the claimed."""
    low, high = (ends.flatten().long() for ends in (row.low, row.high))
    if (high - low + 1).double().prod() > MOST_LEVELS:
        low, high = low.maximum(claimed.long() - 2), high.minimum(claimed.long() + 2)
    ranges = (range(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return np.array(list(itertools.product(*ranges)))


def wrong_proofs(problem: RoundingProblem, solution: Solution) -> int:
    """How many rows are called proven while other levels have less energy."""
    wrong = 0
    for g, r in itertools.product(range(problem.g), range(problem.r)):
        if not bool(solution.proven[g, r]):
            continue
        row = problem.row(g, r)
        every = tried_levels(row, solution.levels[g, r])
        errors = row.scale.numpy()[0] * (every - row.target.numpy()[0])
        linear = np.zeros(row.d) if row.linear is None else row.linear.numpy()[0, 0]
        parts = np.einsum("ni,ij,nj->n", errors, row.gram.numpy()[0], errors), errors @ linear
        size = np.abs(parts).sum(axis=0).max() + abs(float(row.offset))
        least = (parts[0] + parts[1]).min() + float(row.offset)
        wrong += float(solution.energy[g, r]) > least + TOLERANCE * size + TINY
    return wrong


def outcome(problem: Path, solution: Path, solver: str) -> str:
    """How `solve` ends: solved, proven, refused, or in which way it went wrong."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            solve(problem, solver=solver, output=solution, as_json=True)
    except typer.Exit as ending:
        told = errors.getvalue().strip()
        well = ending.exit_code == 2 and told.startswith("Error: ") and not solution.exists()
        return "refused" if well else f"WRONG EXIT {ending.exit_code}: {told}"
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error}"
    found = Solution.load(solution)
    if not bool(found.proven.any()):
        return "solved"
    return "WRONG PROOF" if wrong_proofs(RoundingProblem.load(problem), found) else "proven"


def main() -> None:
    """Fuzz, and write what happened."""
    parser = described(__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        problem, solution = Path(folder, "problem.npz"), Path(folder, "solution.npz")
        for number in tqdm(range(arguments.files)):
            random = np.random.default_rng([arguments.seed, number])
            solution.unlink(missing_ok=True)
            kind, solver = written(random, problem), SOLVERS[number % len(SOLVERS)]
            ended = outcome(problem, solution, solver)
            if ended not in ("solved", "proven", "refused"):
                bad.append(
                    json.dumps({"number": number, "solver": solver, "what": kind, "end": ended})
                )
                ended = "wrong"
                tqdm.write(bad[-1])
            for each in kind.split(" + "):
                counts.setdefault(each, Counter())[ended] += 1
    endings = ("proven", "solved", "refused", "wrong")
    rows = [
        {"what was done": kind, "files": sum(of.values()), **{end: of[end] for end in endings}}
        for kind, of in sorted(counts.items())
    ]
    closing = f"{arguments.files} files, {len(bad)} of them with a crash or a wrong claim."
    write_markdown("fuzzed_problems", rows, "\n".join([closing, *bad[:20]]))


if __name__ == "__main__":
    main()
