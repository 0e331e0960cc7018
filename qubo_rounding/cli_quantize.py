"""The command that rounds a whole network."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from safetensors.torch import save_file
from torch import Tensor

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.atomic import atomic_path
from qubo_rounding.cli_options import (
    SOLVER_HELP,
    ActEncodings,
    Bias,
    Bits,
    Cluster,
    Encodings,
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
    reports_errors,
)
from qubo_rounding.export import save_levels, write_encodings, write_onnx
from qubo_rounding.extras import imported
from qubo_rounding.frozen_grids import read_encodings
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.methods import method_options
from qubo_rounding.models import load_model
from qubo_rounding.network import QuantisedNetwork, nearest_network, quantise
from qubo_rounding.provenance import provenance
from qubo_rounding.report import markdown_table
from qubo_rounding.run_folder import LayerRecord, is_begun
from qubo_rounding.run_summary import NOT_PRINTED, check_judges, network_scores, run_time
from qubo_rounding.solvers import make_solver
from qubo_rounding.spread import Spread


class ExportFormat(StrEnum):
    """What the rounded network can be written as, besides a state dict."""

    ONNX = "onnx"
    LEVELS = "levels"
    ENCODINGS = "encodings"


@reports_errors(keeps="output")
def quantize(
    model: ModelSpec,
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="run folder; resumes there")],
    limit: Limit = None,
    skip_unreadable: SkipUnreadable = False,
    views: Annotated[
        int, typer.Option(help="calibrate on each image and VIEWS - 1 windows of it")
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
        str | None, typer.Option(help=f"{SOLVER_HELP}; auto:effort=fast where nothing is given")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="instead of a solver: auto, adaround, block or distil[:key=value,...]"),
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
    shrink: Shrink = 0.0,
    encodings: Encodings = None,
    act_encodings: ActEncodings = None,
    calibration: Annotated[
        Literal["sequential", "independent"],
        typer.Option(help="round on the inputs of the rounded network, or of the float one"),
    ] = "sequential",
    memory: Annotated[float, typer.Option(help="GiB for suspended forward passes")] = 4.0,
    export: Annotated[
        list[ExportFormat] | None,
        typer.Option(help="write the rounded network in this format, too; repeatable"),
    ] = None,
    workers: Workers = None,
    cluster: Cluster = None,
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object a finished layer, then the summary's")
    ] = False,
) -> None:
    """Round a whole network; the run folder receives its weights, layers and summary.json.

    Example: qubo-rounding quantize efficientnet_lite0 --images photos/ --limit 256 -o runs/lite0
    """
    began, progress = time.perf_counter(), not (quiet or as_json)
    if solver and method:
        raise ValueError("give --solver or --method, not both.")
    how: dict[str, Any] = (
        {"solver": make_solver(solver)} if solver else method_options(method or "auto")
    )
    if ExportFormat.ONNX in (export or []):
        imported("onnx", "onnx")  # before the work that could not be exported after it
    network, preprocessing = load_model(model)
    loader = asked_images(images, preprocessing, limit, skip_unreadable).augmented(views, seed)
    example = next(iter(loader))[0][:1]
    judges = None
    if eval_images is not None:
        judges = asked_images(eval_images, preprocessing, None, skip_unreadable)
        check_judges(network, judges, example)
    settings = LayerSettings(
        bits=bits,
        layer_bits=dict(_layer_bits(text) for text in layer_bits or []),
        granularity=granularity,
        bias=bias,
        candidates=candidates,
        scale_refits=scale_refits,
        equalise=equalise,
        act_bits=act_bits,
        shrink=shrink,
        grids=read_encodings(encodings) if encodings else {},
        act_grids=read_encodings(act_encodings, "activations") if act_encodings else {},
    )
    if "solver" not in how and (workers or cluster):
        raise ValueError("--workers and --cluster work with a solver; give --solver.")
    resumed = is_begun(output)
    with asked_executor(workers, cluster) as executor:
        if executor is not None and calibration == "sequential":  # one layer needs the other
            how["solver"], executor = Spread(how["solver"], executor), None
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
            executor=executor,
            progress=progress,
            on_layer=_tell_layer if as_json else None,
        )
    with atomic_path(output / "model.safetensors") as temporary:
        state = {name: t.contiguous().clone() for name, t in result.model.state_dict().items()}
        save_file(state, temporary)
    exported = [_export(kind, output, result, settings, example) for kind in export or []]
    nearest = nearest_network(network, example, result, settings)
    summary, table = network_scores(
        network,
        {"nearest": nearest, "result": result.model},
        judges,
        example,
        progress,
    )
    summary |= {"model": model, "networks": table, "provenance": provenance()}
    summary["arguments"] = {
        "images": len(loader),
        "method": method or solver or "auto",
        "settings": repr(settings),
        "calibration": calibration,
        "seed": seed,
    }
    summary |= {"seconds": time.perf_counter() - began, "resumed": resumed}
    summary["layers"] = [asdict(record) for record in result.records]
    summary["skipped"] = result.skipped
    with atomic_path(output / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    if as_json:
        scores = {k: v for k, v in summary.items() if k not in ("layers", "skipped", "networks")}
        typer.echo(json.dumps(scores))
        return
    _tell_tables(result, table)
    typer.echo(f"{run_time(summary)}\n")
    for file in (output / "summary.json", output / "model.safetensors", *exported):
        typer.echo(f"{file}  {file.stat().st_size / 2**20:.2f} MiB")


def _tell_tables(result: QuantisedNetwork, table: list[dict[str, Any]]) -> None:
    rows = [
        {"layer": r.name, "energy / nearest": r.ratio, "flips": r.flips} for r in result.records
    ]
    typer.echo(f"{markdown_table(rows)}\n")
    scores = [{k: v for k, v in row.items() if k not in NOT_PRINTED} for row in table]
    if any(len(row) > 1 for row in scores):  # without images to judge by there are only names
        typer.echo(f"{markdown_table(scores)}\n")


def _tell_layer(record: LayerRecord) -> None:
    told = {k: v for k, v in asdict(record).items() if k != "stats"}
    typer.echo(json.dumps(told))


def _export(
    kind: ExportFormat,
    output: Path,
    result: QuantisedNetwork,
    settings: LayerSettings,
    example: Tensor,
) -> Path:
    if kind is ExportFormat.ONNX:
        return write_onnx(output / "model.onnx", result, settings, example)
    if kind is ExportFormat.ENCODINGS:
        return write_encodings(output / "model.encodings.json", result, settings)
    path = output / "levels.safetensors"
    save_levels(path, result, settings)
    return path


def _layer_bits(text: str) -> tuple[str, int]:
    name, equals, bits = text.rpartition("=")
    if not equals or not bits.isdecimal():
        raise ValueError(f"--layer-bits is {text!r}; give LAYER=BITS, such as _conv_stem=8.")
    return name, int(bits)
