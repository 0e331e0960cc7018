"""`python -m analysis` lists the scripts; `python -m analysis all --scale demo|kit|full` runs them.

Scripts resume where they were stopped: rows that are in `results` are not measured again.
"""

from __future__ import annotations

import subprocess
import sys
import time

from analysis.entry import described, need_kit
from analysis.scripts import APART, SCRIPTS, Script
from qubo_rounding.report import markdown_table


def listing() -> str:
    """All scripts as a table."""
    rows = [
        {
            "script": f"`{script.module}`",
            "what it answers": script.question,
            "cores": script.cores,
            "minutes": f"{script.minutes:g}",
            "scales": ", ".join(scale for scale, _ in script.scales),
        }
        for script in (*SCRIPTS, *APART)
    ]
    return markdown_table(rows)


def run(scripts: list[Script], scale: str, more: list[str]) -> list[str]:
    """Run scripts one after the other; returns the names of those that failed."""
    failed = []
    for script in scripts:
        arguments = script.arguments(scale) or ()
        print(f"== {script.module} (about {script.minutes:g} minutes at kit scale)", flush=True)
        began = time.monotonic()
        call = [sys.executable, "-m", f"analysis.{script.module}", *arguments, *more]
        if subprocess.run(call, check=False).returncode:
            failed.append(script.module)
        print(f"   {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return failed


def main(words: list[str] | None = None) -> None:
    """List, or run; the words are those of the command line."""
    parser = described(__doc__)
    parser.prog = "python -m analysis"
    parser.add_argument("scripts", nargs="*", help="names, or all; without any they are listed")
    parser.add_argument("--scale", choices=["demo", "kit", "full"], default="kit")
    options, more = parser.parse_known_args(words)
    if not options.scripts:
        print(listing())
        return
    known = {script.module: script for script in SCRIPTS}
    names = list(known) if options.scripts == ["all"] else options.scripts
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no script {unknown}; there are {', '.join(known)}")
    if more and len(names) != 1:
        parser.error(f"options of one script's own go with that script alone: {' '.join(more)}")
    if options.scale == "kit":
        need_kit(parser)
    scripts = [known[name] for name in names if known[name].arguments(options.scale) is not None]
    failed = run(scripts, options.scale, more)
    print(f"{len(scripts) - len(failed)} of {len(scripts)} scripts ran to their end.")
    if failed:
        sys.exit(f"these did not: {', '.join(failed)}")


if __name__ == "__main__":
    main()
