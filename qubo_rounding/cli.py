"""The command line: demo, problems, solve, compare, compare-networks, quantize, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.cli_compare import compare, compare_networks
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
    asked_executor,
    asked_images,
    check_folder_of,
    reports_errors,
)
from qubo_rounding.cli_quantize import quantize
from qubo_rounding.demo import run_demo
from qubo_rounding.exchange_file import check_npz_path
from qubo_rounding.kept_files import file_name
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.models import load_model
from qubo_rounding.network import problems as network_problems
from qubo_rounding.page import write_page
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.referee import run_solver
from qubo_rounding.report import markdown_table
from qubo_rounding.solvers import make_solver
from qubo_rounding.spread import Spread
from qubo_rounding.study_page import is_study, write_study_page
from qubo_rounding.watch import watching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Round the weights of neural networks as QUBOs.",
)


@app.command()
@reports_errors()
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
@reports_errors(keeps="output")
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
        path = output / f"{number:03d}-{file_name(name)}.npz"
        problem.save(path)
        typer.echo(f"{path}  g={problem.g} r={problem.r} d={problem.d}")


@app.command()
@reports_errors()
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
        asked_executor(workers, cluster) as executor,
        watching(time_limit=time_limit, progress=not as_json),
    ):
        spread = chosen if executor is None else Spread(chosen, executor)
        solution, seconds = run_solver(posed, spread, seed=seed)
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


app.command()(compare)
app.command()(compare_networks)
app.command()(quantize)


@app.command()
@reports_errors()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder of a finished quantize, or of a study")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the page; RUN/report.html if not given")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="which layer of a run to show closely")] = None,
) -> None:
    """Write one HTML page about a run or a study: tables that sort, and pictures.

    Example: qubo-rounding report runs/lite0
    """
    if output:
        check_folder_of(output)
    if is_study(run):
        if layer is not None:
            raise ValueError(f"{run} is a study; --layer goes with the folder of a run.")
        typer.echo(write_study_page(run, output))
    else:
        typer.echo(write_page(run, output, layer=layer))


def main() -> None:
    """Entry point of the command `qubo-rounding`."""
    reuse_freed_memory()
    app()
