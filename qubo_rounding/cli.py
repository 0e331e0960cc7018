"""The command line: demo, problems, solve, compare, quantize."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import save_file
from torch import nn

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.atomic import atomic_path
from qubo_rounding.compare import compare as compare_solvers
from qubo_rounding.compare import run_solver, write_records
from qubo_rounding.demo import run_demo
from qubo_rounding.evaluation import evaluate, predict
from qubo_rounding.exchange_file import check_npz_path
from qubo_rounding.imagenet import Images as ImageSet
from qubo_rounding.imagenet import open_images
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.methods import method_options
from qubo_rounding.models import load_model
from qubo_rounding.network import nearest_network, quantise
from qubo_rounding.network import problems as network_problems
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.report import markdown_table, records_table
from qubo_rounding.segmentation import dense_answer, evaluate_dense
from qubo_rounding.solvers import make_solver
from qubo_rounding.watch import watching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Round the weights of neural networks as QUBOs.",
)

_SOLVER_HELP = "NAME[:key=value,...], such as annealing:sweeps=500,start=nearest"
ModelSpec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="efficientnet_lite0, torchvision:NAME, timm:NAME or path/to/file.py:function",
    ),
]
Images = Annotated[
    Path, typer.Option("--images", help="class folders, or a CSV with path and class_index")
]
Limit = Annotated[int | None, typer.Option(help="take this many images, spread evenly")]
Bits = Annotated[int, typer.Option(help="bits a weight, 2 to 8")]
Granularity = Annotated[
    Literal["channel", "tensor"], typer.Option(help="one scale a channel or one a layer")
]
Bias = Annotated[Literal["refit", "keep"], typer.Option(help="may the bias absorb mean errors?")]
Equalise = Annotated[bool, typer.Option("--equalise", help="rescale channels between layers first")]
Seed = Annotated[int, typer.Option(help="same seed, same bits")]


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input ends in one message and exit code 2, an interrupt in one and 130; no traceback."""

    @functools.wraps(command)
    def reporting(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("\nInterrupted. Files and layers already finished are kept.", err=True)
            raise typer.Exit(130) from None

    return reporting


@app.command()
@_reports_errors
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
@_reports_errors
def problems(
    model: ModelSpec,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the files")],
    limit: Limit = None,
    bits: Bits = 4,
    granularity: Granularity = "channel",
    bias: Bias = "refit",
    equalise: Equalise = False,
) -> None:
    """Write one problem file (.npz) per layer of a network.

    Example: qubo-rounding problems efficientnet_lite0 --images photos/ --limit 256 -o problems/
    """
    network, preprocessing = load_model(model)
    loader = open_images(images, preprocessing, limit=limit)
    settings = LayerSettings(bits=bits, granularity=granularity, bias=bias, equalise=equalise)
    output.mkdir(parents=True, exist_ok=True)
    posed = network_problems(network, loader, settings, progress=True)
    for number, (name, problem) in enumerate(posed):
        path = output / f"{number:03d}-{name or 'model'}.npz"
        problem.save(path)
        typer.echo(f"{path}  g={problem.g} r={problem.r} d={problem.d}")


@app.command()
@_reports_errors
def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM.npz")],
    solver: Annotated[str, typer.Option(help=_SOLVER_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="solution file, .npz")],
    seed: Seed = 0,
    time_limit: Annotated[
        float | None, typer.Option(help="seconds after which iterative solvers stop")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="end with one JSON object")] = False,
) -> None:
    """Solve one problem file and write the solution file.

    Example: qubo-rounding solve problems/000-_conv_stem.npz --solver annealing -o stem.npz
    """
    check_npz_path(output)  # before the work that could not be kept after it
    posed, chosen = RoundingProblem.load(problem), make_solver(solver)
    with watching(time_limit=time_limit, progress=not as_json):
        solution, seconds = run_solver(posed, chosen, seed=seed)
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
@_reports_errors
def compare(
    problem: Annotated[list[Path], typer.Argument(metavar="PROBLEM.npz...")],
    solvers: Annotated[str, typer.Option(help="names with options, separated by commas")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the records as CSV")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Run several solvers on several problem files and print one table.

    Example: qubo-rounding compare problems/*.npz --solvers nearest,gptq,annealing:sweeps=500
    """
    if output and not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first.")
    chosen = {text: make_solver(text) for text in split_solvers(solvers)}
    posed = ((path.stem, RoundingProblem.load(path)) for path in problem)
    records = compare_solvers(posed, chosen, seed=seed, progress=True)
    if output:
        write_records(output, records)
    typer.echo(records_table(records))


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


@app.command()
@_reports_errors
def quantize(
    model: ModelSpec,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="run folder; resumes there")],
    limit: Limit = None,
    views: Annotated[
        int, typer.Option(help="calibrate on each image and so many less one windows of it")
    ] = 1,
    eval_images: Annotated[
        Path | None, typer.Option("--eval", help="labelled images to judge by, as --images")
    ] = None,
    bits: Bits = 4,
    layer_bits: Annotated[
        list[str] | None, typer.Option(help="other bits for one layer, LAYER=BITS; repeatable")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="leave a layer out; repeatable")] = None,
    act_bits: Annotated[
        int | None, typer.Option(help="bits of the activations, 2 to 8; without, they stay float")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help=f"{_SOLVER_HELP}; annealing where nothing is given")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="instead of a solver: auto, or adaround, block or distil[:key=value,...]"
        ),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="improve every layer behind its activation function")
    ] = False,
    scale_refits: Annotated[
        int, typer.Option(help="rounds in which scales are refitted to a solver's levels")
    ] = 0,
    candidates: Annotated[
        Literal["up_down", "free"], typer.Option(help="two levels a weight, or the whole grid")
    ] = "up_down",
    granularity: Granularity = "channel",
    bias: Bias = "refit",
    equalise: Equalise = False,
    calibration: Annotated[
        Literal["sequential", "independent"],
        typer.Option(help="round on the inputs of the rounded network, or of the float one"),
    ] = "sequential",
    memory: Annotated[float, typer.Option(help="GiB for suspended forward passes")] = 4.0,
    seed: Seed = 0,
) -> None:
    """Round a whole network; the run folder receives its weights, layers and summary.json.

    Example: qubo-rounding quantize efficientnet_lite0 --images photos/ --limit 256 -o runs/lite0
    """
    began = time.perf_counter()
    if solver and method:
        raise ValueError("give --solver or --method, not both.")
    how: dict[str, Any] = (
        method_options(method) if method else {"solver": make_solver(solver or "annealing")}
    )
    network, preprocessing = load_model(model)
    loader = open_images(images, preprocessing, limit=limit).augmented(views, seed)
    judges = None if eval_images is None else open_images(eval_images, preprocessing)
    settings = LayerSettings(
        bits=bits,
        layer_bits=dict(_layer_bits(text) for text in layer_bits or []),
        granularity=granularity,
        bias=bias,
        candidates=candidates,
        scale_refits=scale_refits,
        equalise=equalise,
        act_bits=act_bits,
    )
    result = quantise(
        network,
        loader,
        **how,
        finish=ActivationFinish() if finish else None,
        settings=settings,
        calibration=calibration,
        skip=skip or (),
        run=output,
        seed=seed,
        memory=memory * 2**30,
        progress=True,
    )
    with atomic_path(output / "model.safetensors") as temporary:
        state = {name: t.contiguous().clone() for name, t in result.model.state_dict().items()}
        save_file(state, temporary)
    nearest = nearest_network(network, next(iter(loader))[0][:1], result, settings)
    summary, table = _scores(network, {"nearest": nearest, "result": result.model}, judges)
    summary["seconds"] = time.perf_counter() - began
    summary["layers"] = [asdict(record) for record in result.records]
    summary["skipped"] = result.skipped
    with atomic_path(output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    rows = [
        {"layer": r.name, "energy / nearest": _ratio(r.energy, r.energy_nearest), "flips": r.flips}
        for r in result.records
    ]
    typer.echo(markdown_table(rows) + "\n\n" + markdown_table(table))
    typer.echo(f"{summary['seconds']:.0f} s")
    typer.echo(f"\n{output / 'summary.json'}\n{output / 'model.safetensors'}")


def _scores(
    network: nn.Module, rounded: Mapping[str, nn.Module], judges: ImageSet | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores that summary.json holds, null without images to judge by, and a table of all."""
    keys = ("top1", "top5", "agreement", "kl")
    table: list[dict[str, Any]] = [{"network": name} for name in ("float", *rounded)]
    scores: dict[str, Any] = dict.fromkeys(("float_top1", "nearest_top1", *keys))
    if judges is None:
        return scores, table
    models = (network, *rounded.values())
    with torch.no_grad():
        dense = dense_answer(network(next(iter(judges))[0][:1])) is not None
    if dense:  # class folders name no pixels: the float network is the judge
        keys = ("agreement", "float_iou", "kl")
        pictures = [x for x, _ in judges]
        for row, model in zip(table, models, strict=True):
            judged = evaluate_dense(model, pictures, float_model=network, progress=True)
            row |= {key: getattr(judged, key) for key in keys}
    else:
        float_logits = predict(network, judges, progress=True)
        for row, model in zip(table, models, strict=True):
            logits = float_logits if model is network else predict(model, judges, progress=True)
            judged = evaluate(logits, judges.labels, float_logits)
            row |= {key: getattr(judged, key) for key in keys}
        scores |= {"float_top1": table[0]["top1"], "nearest_top1": table[1]["top1"]}
    return scores | {key: table[-1][key] for key in keys}, table


def _layer_bits(text: str) -> tuple[str, int]:
    name, equals, bits = text.rpartition("=")
    if not equals or not bits.isdecimal():
        raise ValueError(f"--layer-bits is {text!r}; give LAYER=BITS, such as _conv_stem=8.")
    return name, int(bits)


def _ratio(energy: float, yardstick: float) -> float | None:
    return energy / yardstick if yardstick else None


def main() -> None:
    """Entry point of the command `qubo-rounding`."""
    reuse_freed_memory()
    app()
