"""Forward passes on the CPU with freed memory reused, and as the system does it by default.

    python -m analysis.benchmarks.allocator        # 2 minutes

Each setting in processes of its own, alternating. Writes results/allocator.{csv,md}.
"""

from __future__ import annotations

import subprocess
import sys

from analysis.entry import begin
from analysis.rows import RESULTS, append_row, read_rows, write_markdown

PATH = RESULTS / "allocator.csv"
ROUNDS = 3
PROBE = """
import resource, sys, time, torch, qubo_rounding as qr
if sys.argv[1] == "reused": assert qr.reuse_freed_memory()
model, _ = qr.load_model("efficientnet_lite0")
batch = torch.zeros(32, 3, 224, 224)
with torch.no_grad():
    model(batch)
    began, system = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(4):
        model(batch)
    usage = resource.getrusage(resource.RUSAGE_SELF)
print((time.perf_counter() - began) / 4, (usage.ru_stime - system) / 4, usage.ru_maxrss / 2**20)
"""


def measure() -> None:
    """Append one row for each setting and round."""
    for number in range(len(read_rows(PATH)) // 2, ROUNDS):
        for memory in ("default", "reused"):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, memory], capture_output=True, text=True, check=True
            )
            seconds, system, peak = map(float, done.stdout.split())
            row = dict(round=number, memory=memory, seconds_a_pass=seconds)
            append_row(PATH, row | dict(system_seconds=system, peak_gib=peak))


def render() -> None:
    """Write the table: the best round of each setting."""
    rows = []
    for memory in ("default", "reused"):
        mine = [row for row in read_rows(PATH) if row["memory"] == memory]
        best = min(mine, key=lambda row: float(row["seconds_a_pass"]))
        keys = ("seconds_a_pass", "system_seconds", "peak_gib")
        rows.append({"memory": memory} | {key: float(best[key]) for key in keys})
    closing = "EfficientNet-Lite0, 32 images of 224 x 224; the faster of three processes each."
    write_markdown("allocator", rows, closing)


if __name__ == "__main__":
    begin(__doc__, kit=False)
    measure()
    render()
