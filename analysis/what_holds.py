"""What holds under load, faults and bad input: for each heading what was tried, and what was lost.

    python -m analysis.what_holds          # about 5 minutes on 2 cores

Runs the tests of each heading and counts their cases; beside them stand the long trials, as their
own scripts measured them (they are not run again here). Writes results/what_holds.md; exits with an
error where anything was lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from analysis.entry import begin
from analysis.rows import read_markdown, write_markdown

TESTS: dict[str, list[str]] = {
    "past one machine": ["test_workers", "test_gram_reduction"],
    "faults": [
        *("test_atomic", "test_kept_files", "test_folder_lock", "test_run_folder", "test_room"),
        "test_sample_store",
    ],
    "bad input": [
        *("test_bad_networks", "test_exchange_file", "test_imagenet", "test_problem", "test_cli"),
        *("test_methods", "test_layer_problem", "test_passes"),
    ],
    "determinism": ["test_conformance", "test_random_numbers", "test_parallel"],
    "export": ["test_export", "test_frozen_grids"],
    "long work": ["test_watch", "test_records"],
    "packaging": ["test_public_names", "test_documentation", "test_guides"],
}
HEADINGS = [*TESTS, "security"]
Rows = list[dict[str, str]]
GROWTH = 16.0  # MiB that a soak may add after its first rounds


@dataclass(frozen=True)
class Trial:
    """A long trial that a script of its own made.

    Args:
        heading: it belongs to.
        module: the script, whose table lies in results.
        what: was tried, and what counts as lost.
        tried, lost: their numbers, from the rows of that table.
    """

    heading: str
    module: str
    what: str
    tried: Callable[[Rows], int]
    lost: Callable[[Rows], int]


def _total(rows: Rows, column: str) -> int:
    return sum(int(row[column]) for row in rows)


def _grew(rows: Rows) -> bool:
    resident = [float(row["resident, MiB"]) for row in rows[1:]]
    return resident[-1] - resident[0] > GROWTH


def _strayed(rows: Rows) -> int:
    return sum((row["within"], row["same bits"]) != ("True", "True") for row in rows)


TRIALS = (
    Trial(
        *("faults", "benchmarks.killed_runs", "kills at random moments; other bits"),
        lambda rows: _total(rows, "kills"),
        lambda rows: _total(rows, "runs with other bits"),
    ),
    Trial(
        *(
            "bad input",
            "benchmarks.fuzzed_problems",
            "wrongs done to problem files; crashes, false claims",
        ),
        lambda rows: _total(rows, "files"),
        lambda rows: _total(rows, "wrong"),
    ),
    Trial(
        *("determinism", "benchmarks.memory_budgets", "budgets; other bits, more memory"),
        len,
        _strayed,
    ),
    Trial(
        *("export", "exported_networks", "answers to photographs in onnxruntime; other ones"),
        lambda rows: _total(rows, "images"),
        lambda rows: _total(rows, "images") - _total(rows, "same top-1, all optimisations"),
    ),
    Trial(
        *("long work", "benchmarks.soak", f"networks in a process; growth over {GROWTH:.0f} MiB"),
        lambda rows: int(rows[-1]["rounds"]),
        _grew,
    ),
)


def tested() -> list[dict[str, object]]:
    """Each heading's tests: how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/{name}.py" for names in TESTS.values() for name in names]
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *files]
        subprocess.run(command, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        ends = Counter((_module(case), _end(case)) for case in cases)
    return [
        {
            "heading": heading,
            "command": f"`python -m pytest {' '.join(f'tests/{name}.py' for name in names)}`",
            "what": "tests; failures",
            "tried": sum(ends[name, end] for name in names for end in ("passed", "lost")),
            "lost": sum(ends[name, "lost"] for name in names),
            "skipped": sum(ends[name, "skipped"] for name in names),
        }
        for heading, names in TESTS.items()
    ]


def _module(case: ElementTree.Element) -> str:
    return case.attrib["classname"].split(".")[1]


def _end(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "skipped" if "skipped" in kinds else "lost" if kinds & {"failure", "error"} else "passed"


def tried() -> list[dict[str, object]]:
    """The long trials, from the tables that their scripts wrote."""
    found = []
    for trial in TRIALS:
        rows = read_markdown(trial.module.rpartition(".")[2])
        found.append(
            {
                "heading": trial.heading,
                "command": f"`python -m analysis.{trial.module}`",
                "what": trial.what,
                "tried": trial.tried(rows),
                "lost": int(trial.lost(rows)),
                "skipped": 0,
            }
        )
    return found


def scanned() -> dict[str, object]:
    """What bandit finds in the package."""
    command = ["bandit", "--quiet", "--severity-level", "medium", "--format", "json"]
    command += ["--recursive", "qubo_rounding"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    files = [name for name in found["metrics"] if name != "_totals"]
    return {
        "heading": "security",
        "command": "`bandit --severity-level medium --recursive qubo_rounding`",
        "what": "source files; findings",
        "tried": len(files),
        "lost": len(found["results"]),
        "skipped": 0,
    }


if __name__ == "__main__":
    begin(__doc__, kit=False)
    table = [*tested(), *tried(), scanned()]
    table.sort(key=lambda row: HEADINGS.index(str(row["heading"])))
    write_markdown("what_holds", table)
    sys.exit(any(row["lost"] for row in table))
