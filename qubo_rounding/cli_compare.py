"""The commands that compare: solvers on problem files, methods on whole networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qubo_rounding.cli_options import (
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
from qubo_rounding.compare import compare as compare_solvers
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.methods import method_options
from qubo_rounding.models import load_model
from qubo_rounding.network_comparison import compare_networks as compare_on_networks
from qubo_rounding.network_study import NetworkCase, NetworkMethod
from qubo_rounding.record_files import check_records_path, write_records
from qubo_rounding.records import NetworkRecord
from qubo_rounding.report import networks_table, records_table
from qubo_rounding.solvers import make_solver
from qubo_rounding.study import CaseFiles


@reports_errors(keeps="study")
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
    workers: Workers = None,
    cluster: Cluster = None,
) -> None:
    """Run several solvers on several problem files and print one table.

    Example: qubo-rounding compare problems/ --solvers nearest,gptq,annealing:sweeps=500
    """
    if output:
        check_folder_of(output)
        check_records_path(output)
    chosen = {text: make_solver(text) for text in split_descriptions(solvers)}
    if not chosen:
        raise ValueError("no solvers are given; give names separated by commas.")
    cases = CaseFiles(problem_files(problem), held_out)
    every = range(seed, seed + seeds)
    with asked_executor(workers, cluster) as executor:
        records = compare_solvers(
            cases, chosen, seeds=every, study=study, executor=executor, progress=True
        )
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


def split_descriptions(text: str) -> list[str]:
    """The solvers or methods in a list separated by commas; options have commas too.

    A part with an equals sign and no colon goes on with the options of the solver before it.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and "=" in part and ":" not in part.partition("=")[0]:
            found[-1] += "," + part
        else:
            found.append(part)
    return found


@reports_errors(keeps="study")
def compare_networks(
    model: ModelSpec,
    images: Images,
    eval_images: Annotated[
        Path, typer.Option("--eval", help="labelled images to judge by, as --images")
    ],
    solvers: Annotated[
        str, typer.Option(help="names with options, separated by commas; they see Gram matrices")
    ] = "",
    methods: Annotated[
        str,
        typer.Option(help="adaround, block or distil with options, separated by commas"),
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="records as .csv or .parquet")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="folder that keeps records and runs, to resume and to add to"),
    ] = None,
    limit: Limit = None,
    skip_unreadable: SkipUnreadable = False,
    bits: Bits = 4,
    granularity: Granularity = "channel",
    bias: Bias = "refit",
    equalise: Equalise = False,
    shrink: Shrink = 0.0,
    calibration: Annotated[
        Literal["sequential", "independent"],
        typer.Option(help="what solvers round on: the rounded network's inputs or the float one's"),
    ] = "sequential",
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from --seed on")] = 1,
    workers: Workers = None,
    cluster: Cluster = None,
) -> None:
    """Round a network by several solvers and methods and print one table.

    Example: qubo-rounding compare-networks MODEL --images photos/ --eval val/ --solvers gptq,auto
    """
    if output:
        check_folder_of(output)
        check_records_path(output)
    settings = LayerSettings(
        bits=bits, granularity=granularity, bias=bias, equalise=equalise, shrink=shrink
    )
    if (workers or cluster) and calibration == "sequential":
        raise ValueError("--workers and --cluster need --calibration independent here.")
    chosen = {
        text: NetworkMethod(make_solver(text), settings=settings, calibration=calibration)
        for text in split_descriptions(solvers)
    }
    for text in split_descriptions(methods):
        chosen[f"method {text}"] = NetworkMethod(**method_options(text), settings=settings)
    if not chosen:
        raise ValueError("nothing is to be compared; give --solvers, --methods or both.")
    network, preprocessing = load_model(model)
    judges = asked_images(eval_images, preprocessing, None, skip_unreadable)
    loader = asked_images(images, preprocessing, limit, skip_unreadable)
    case = NetworkCase(model, network, {"": loader}, judges, judges.labels)
    every = range(seed, seed + seeds)
    with asked_executor(workers, cluster) as executor:
        records = compare_on_networks(
            [case], chosen, seeds=every, study=study, executor=executor, progress=True
        )
    if output:
        write_records(output, records, NetworkRecord)
    typer.echo(networks_table(records))
