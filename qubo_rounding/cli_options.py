"""What the commands have in common: options, and how errors are told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qubo_rounding.imagenet import Images as ImageSet
from qubo_rounding.imagenet import open_images
from qubo_rounding.models import Preprocessing
from qubo_rounding.tasks import Workers as Executors
from qubo_rounding.workers import cluster, processes

SOLVER_HELP = "NAME[:key=value,...], such as annealing:sweeps=500,start=nearest"
ModelSpec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="efficientnet_lite0, torchvision:NAME, timm:NAME or path/to/file.py:function",
    ),
]
Images = Annotated[
    Path,
    typer.Option(
        "--images",
        help="folder of images or of class folders, or a CSV with path and class_index",
    ),
]
Limit = Annotated[int | None, typer.Option(help="take this many images, spread evenly")]
Bits = Annotated[int, typer.Option(help="bits a weight, 2 to 8")]
Granularity = Annotated[
    Literal["channel", "tensor"], typer.Option(help="one scale a channel or one a layer")
]
Bias = Annotated[
    Literal["refit", "keep"],
    typer.Option(help="let biases absorb mean errors, or keep them"),
]
Equalise = Annotated[bool, typer.Option("--equalise", help="rescale channels between layers first")]


def _share(text: str | float) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no number; give a share in [0, 1), or auto."
        ) from None


Shrink = Annotated[
    Any,
    typer.Option(
        parser=_share,
        metavar="SHARE|auto",
        help="share that correlations of inputs lose; auto takes off what is chance in each layer",
    ),
]
Encodings = Annotated[
    Path | None, typer.Option(help="take the weights' grids from this encodings file (JSON)")
]
ActEncodings = Annotated[
    Path | None, typer.Option(help="take the activations' grids from this encodings file (JSON)")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="leave out images that cannot be read, and say so")
]
Workers = Annotated[int | None, typer.Option(min=1, help="solve in so many processes; same bits")]
Cluster = Annotated[
    str | None, typer.Option(help="solve on a Dask cluster, such as tcp://node:8786")
]
Seed = Annotated[int, typer.Option(help="same seed, same bits")]


def reports_errors(
    keeps: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Bad input ends in one message and exit code 2, an interrupt in one and 130; no traceback.

    Args:
        keeps: the command's option for the folder that keeps what is finished; None without any.
    """

    def decorator(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def reporting(*args: Any, **kwargs: Any) -> None:
            try:
                command(*args, **kwargs)
            except (ValueError, OSError) as error:
                typer.echo(f"Error: {error}", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                told = "Nothing was kept."
                if keeps and kwargs[keeps]:
                    told = f"What was finished is kept in {kwargs[keeps]}."
                elif keeps:
                    told = f"Nothing was kept; with --{keeps} FOLDER what is finished would be."
                typer.echo(f"\nInterrupted. {told}", err=True)
                raise typer.Exit(130) from None

        return reporting

    return decorator


def check_folder_of(output: Path) -> None:
    """Nothing, where an output can be written: told before the work that makes it.

    Raises:
        ValueError: its folder is not there, or it is a folder itself.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file.")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first.")


def asked_images(
    path: Path, preprocessing: Preprocessing, limit: int | None, skip_unreadable: bool
) -> ImageSet:
    """The images of an option; those that cannot be read left out where that was asked for."""
    images = open_images(path, preprocessing, limit=limit)
    if skip_unreadable:
        images, complaints = images.readable()
        for complaint in complaints:
            typer.echo(f"Left out: {complaint}", err=True)
    return images


@contextmanager
def asked_executor(workers: int | None, cluster_at: str | None) -> Iterator[Executors | None]:
    """What makes or is the executor that was asked for; None where none was.

    Raises:
        ValueError: both processes and a cluster were asked for.
    """
    if workers is not None and cluster_at is not None:
        raise ValueError("give --workers or --cluster, not both.")
    if workers is not None:
        with processes(workers) as make:
            yield make
    elif cluster_at is not None:
        with cluster(cluster_at) as executor:
            yield executor
    else:
        yield None
