"""The command line: demo, problems, solve, compare, quantize, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.cli_options import (
    SOLVER_HELP,
    Bias,
    Bits,
    Cluster,
    Equalise,
    Granularity,
    Images,
    Limit,
    ModelSpec,
    Seed,
    Shrink,
    SkipUnreadable,
    Workers,
    asked_images,
    check_folder_of,
    reports_errors,
    spreading,
)
from qubo_rounding.cli_quantize import quantize
from qubo_rounding.compare import compare as compare_solvers
from qubo_rounding.compare import run_solver
from qubo_rounding.demo import run_demo
from qubo_rounding.exchange_file import check_npz_path
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.models import load_model
from qubo_rounding.network import problems as network_problems
from qubo_rounding.page import write_page
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.records import check_records_path, write_records
from qubo_rounding.report import markdown_table, records_table
from qubo_rounding.solvers import make_solver
from qubo_rounding.study import Case
from qubo_rounding.study_page import write_study_page
from qubo_rounding.watch import watching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Round the weights of neural networks as QUBOs.",
)


@app.command()
@reports_errors
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="for the table and pictures")] = (
        Path("runs/demo")
    ),
    seed: Seed = 0,
) -> None:
    """Round EfficientNet-Lite0 by several methods on photographs that come with the extra `demo`.

    Example: qubo-rounding demo
    """
    run_demo(output, seed)


@app.command()
@reports_errors
def problems(
    model: ModelSpec,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the files")],
    limit: Limit = None,
    skip_unreadable: SkipUnreadable = False,
    bits: Bits = 4,
    granularity: Granularity = "channel",
    bias: Bias = "refit",
    equalise: Equalise = False,
    shrink: Shrink = 0.0,
) -> None:
    """Write one problem file (.npz) per layer of a network.

    Example: qubo-rounding problems efficientnet_lite0 --images photos/ --limit 256 -o problems/
    """
    network, preprocessing = load_model(model)
    loader = asked_images(images, preprocessing, limit, skip_unreadable)
    settings = LayerSettings(
        bits=bits, granularity=granularity, bias=bias, equalise=equalise, shrink=shrink
    )
    output.mkdir(parents=True, exist_ok=True)
    posed = network_problems(network, loader, settings, progress=True)
    for number, (name, problem) in enumerate(posed):
        path = output / f"{number:03d}-{name or 'model'}.npz"
        problem.save(path)
        typer.echo(f"{path}  g={problem.g} r={problem.r} d={problem.d}")


@app.command()
@reports_errors
def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM.npz")],
    solver: Annotated[str, typer.Option(help=SOLVER_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="solution file, .npz")],
    seed: Seed = 0,
    time_limit: Annotated[
        float | None, typer.Option(help="seconds after which iterative solvers stop")
    ] = None,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="end with one JSON object")] = False,
) -> None:
    """Solve one problem file and write the solution file.

    Example: qubo-rounding solve problems/000-_conv_stem.npz --solver annealing -o stem.npz
    """
    check_npz_path(output)  # before the work that could not be kept after it
    posed, chosen = RoundingProblem.load(problem), make_solver(solver)
    with (
        spreading(workers, cluster) as spread,
        watching(time_limit=time_limit, progress=not as_json),
    ):
        solution, seconds = run_solver(posed, spread(chosen), seed=seed)
    solution.save(output)
    result = {
        "solver": solver,
        "energy": float(solution.energy.sum()),
        "energy_nearest": float(posed.energy(posed.nearest()).sum()),
        "lower_bound": solution.total_bound,
        "rows": posed.g * posed.r,
        "proven_rows": int(solution.proven.sum()),
        "seconds": seconds,
    }
    typer.echo(json.dumps(result) if as_json else markdown_table([result]))


@app.command()
@reports_errors
def compare(
    problem: Annotated[
        list[Path], typer.Argument(metavar="PROBLEM...", help="problem files, or folders of them")
    ],
    solvers: Annotated[str, typer.Option(help="names with options, separated by commas")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="records as .csv or .parquet")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="folder that keeps records and solutions, to resume and to add to"),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="folder of the same problem files, their Grams from held-out images"),
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from --seed on")] = 1,
) -> None:
    """Run several solvers on several problem files and print one table.

    Example: qubo-rounding compare problems/ --solvers nearest,gptq,annealing:sweeps=500
    """
    if output:
        check_folder_of(output)
        check_records_path(output)
    chosen = {text: make_solver(text) for text in split_solvers(solvers)}
    cases = (Case.from_file(path, held_out) for path in problem_files(problem))
    every = range(seed, seed + seeds)
    records = compare_solvers(cases, chosen, seeds=every, study=study, progress=True)
    if output:
        write_records(output, records)
    typer.echo(records_table(records))


def problem_files(paths: list[Path]) -> list[Path]:
    """The problem files among paths, folders replaced by what is in them.

    Raises:
        ValueError: a folder without problem files.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no problem files (.npz).")
        found += inside
    return found


def split_solvers(text: str) -> list[str]:
    """The solver descriptions in a list separated by commas; options have commas too.

    A part with an equals sign and no colon goes on with the options of the solver before it.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += "," + part
        else:
            found.append(part)
    if not found:
        raise ValueError("no solvers are given; give names separated by commas.")
    return found


app.command()(quantize)


@app.command()
@reports_errors
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder of a finished quantize, or of a study")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the page; RUN/report.html if not given")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="which layer to show closely")] = None,
) -> None:
    """Write one HTML page about a run or a study: tables that sort, and pictures.

    Example: qubo-rounding report runs/lite0
    """
    if output:
        check_folder_of(output)
    if (run / "records.csv").is_file():
        typer.echo(write_study_page(run, output))
    else:
        typer.echo(write_page(run, output, layer=layer))


def main() -> None:
    """Entry point of the command `qubo-rounding`."""
    reuse_freed_memory()
    app()
