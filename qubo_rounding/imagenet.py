"""Photographs and labels: where they live and how they become batches."""

from __future__ import annotations

import csv
import importlib.util
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageOps
from torch import Tensor

from qubo_rounding.models import Preprocessing

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DECODING_THREADS = 2
DEMO_PHOTOGRAPHS = 20
CALIBRATION_HEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT_HEIGHTS = (0.35, 0.5, 0.65)
WINDOW_SHARES = (0.8, 1.0)

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """One photograph, or a window of it.

    Args:
        file: the image file.
        window: (left, top, width, height) in pixels; None is the whole photograph.
        mirrored: whether left and right are swapped.
    """

    file: Path
    window: tuple[int, int, int, int] | None = None
    mirrored: bool = False

    def load(self, preprocessing: Preprocessing) -> Tensor:
        """The network's input, float32 (3, size, size)."""
        try:
            with Image.open(self.file) as image:
                picture = image.convert("RGB")
        # SyntaxError is Pillow's for a broken PNG, DecompressionBombError for a picture too large.
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.file} cannot be read as an image: {error}") from error
        if self.window is not None:
            left, top, width, height = self.window
            picture = picture.crop((left, top, left + width, top + height))
        return preprocessing(ImageOps.mirror(picture) if self.mirrored else picture)


@dataclass(frozen=True)
class Images:
    """Labelled or unlabelled images in a fixed order; iterating gives batches, as often as asked.

    len() counts images, not batches.

    Args:
        views: what to show, one view an image.
        labels: int64 (n,), class of each image; None where unknown.
        preprocessing: what the network expects.
        batch_size: images a batch.
    """

    views: tuple[View, ...]
    labels: Tensor | None
    preprocessing: Preprocessing
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; a batch has at least one image.")

    def __len__(self) -> int:
        return len(self.views)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of all images together, as the network takes them."""
        return len(self) * 3 * self.preprocessing.size**2 * 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self.batches(self.batch_size)

    def augmented(self, views: int, seed: int = 0) -> Images:
        """Several views of every image: as it is, then windows of it, every other one mirrored.

        A window keeps the sides' ratio and 80 to 100 % of their length. More views of the same
        photographs keep what learns from them from learning them by heart.

        Args:
            views: of each image, itself included, at least 1.
            seed: of the windows.

        Raises:
            ValueError: less than one view, or an image that cannot be read.
        """
        if views < 1:
            raise ValueError(f"views is {views}; an image has at least one, itself.")
        generator = random.Random(seed)
        more = [
            _window(view, generator, mirrored=number % 2 == 0)
            for number in range(views - 1)
            for view in self.views
        ]
        labels = None if self.labels is None else self.labels.repeat(views)
        return replace(self, views=(*self.views, *more), labels=labels)

    def readable(self) -> tuple[Images, list[str]]:
        """The images that can be read, and a message for each that cannot; decodes all of them.

        Raises:
            ValueError: none can be read.
        """

        def complaint(view: View) -> str | None:
            try:
                view.load(self.preprocessing)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            complaints = list(pool.map(complaint, self.views))
        good = [number for number, text in enumerate(complaints) if text is None]
        if not good:
            raise ValueError(f"none of {len(self)} images can be read; the first: {complaints[0]}.")
        labels = None if self.labels is None else self.labels[good]
        kept = replace(self, views=tuple(self.views[number] for number in good), labels=labels)
        return kept, [text for text in complaints if text is not None]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches of (images float32 (n, 3, size, size), labels int64 (n,) or None), in order."""
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            for start in range(0, len(self), batch_size):
                part = slice(start, start + batch_size)
                loaded = pool.map(lambda view: view.load(self.preprocessing), self.views[part])
                yield torch.stack(list(loaded)), None if self.labels is None else self.labels[part]


def open_images(
    path: str | Path,
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    batch_size: int = 32,
) -> Images:
    """The images of a folder or a table, ready for a network.

    Args:
        path: a folder of class folders (n01440764/x.jpg), a folder of unlabelled images, or a CSV
            with the columns path (relative to the CSV) and class_index. Class folders count as
            ImageNet's 1,000 classes where all their names are ImageNet's synset ids, else in
            the order of their sorted names.
        preprocessing: what the network expects, from `load_model`.
        limit: how many images to take, spread evenly over the sorted folder or over the CSV's
            rows; None takes all.
        batch_size: images a batch.

    Returns:
        Images, in the order of the sorted folder or of the CSV.

    Raises:
        ValueError: nothing there, no images, columns that are missing or wrong. An image that
            cannot be read is named when its batch is loaded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; take at least one image, or None for all of them.")
    path = Path(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = _rows_of_table(path)
    elif path.is_dir():
        rows = _rows_of_folder(path)
    else:
        raise ValueError(f"{path} is neither a folder of images nor a CSV file.")
    if not rows:
        raise ValueError(f"{path} holds no images; known are {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return _images(rows if limit is None else _spread(rows, limit), preprocessing, batch_size)


def _images(
    rows: Sequence[tuple[View, int | None]], preprocessing: Preprocessing, batch_size: int = 32
) -> Images:
    classes = [label for _, label in rows if label is not None]
    labels = torch.tensor(classes, dtype=torch.int64) if classes else None
    return Images(tuple(view for view, _ in rows), labels, preprocessing, batch_size)


def _window(view: View, generator: random.Random, mirrored: bool) -> View:
    """A random window of a view."""
    left, top, width, height = view.window or (0, 0, *_size(view.file))
    share = generator.uniform(*WINDOW_SHARES)
    inside = (round(width * share), round(height * share))
    left += generator.randint(0, width - inside[0])
    top += generator.randint(0, height - inside[1])
    return View(view.file, (left, top, *inside), view.mirrored != mirrored)


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except OSError as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _spread(rows: Sequence[T], limit: int) -> list[T]:
    count = min(limit, len(rows))
    return [rows[(2 * index + 1) * len(rows) // (2 * count)] for index in range(count)]


def _rows_of_folder(folder: Path) -> list[tuple[View, int | None]]:
    files = sorted(
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    loose = [file for file in files if len(file.parts) == 1]
    if loose and len(loose) < len(files):
        raise ValueError(
            f"{folder} holds loose images ({loose[0]}) beside folders of images; "
            "it must be all class folders, or all loose images."
        )
    if loose:
        return [(View(folder / file), None) for file in files]
    index = _class_indices({file.parts[0] for file in files})
    return [(View(folder / file), index[file.parts[0]]) for file in files]


def _class_indices(names: set[str]) -> dict[str, int]:
    synsets = (Path(__file__).parent / "imagenet_synsets.txt").read_text().split()
    order = synsets if names <= set(synsets) else sorted(names)
    return {name: index for index, name in enumerate(order)}


def _rows_of_table(table: Path) -> list[tuple[View, int | None]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"path", "class_index"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{table} has no column {' and no column '.join(sorted(missing))}; "
                "it needs path and class_index."
            )
        return [_row(table, reader.line_num, row) for row in reader]


def _row(table: Path, line: int, row: dict[str, str]) -> tuple[View, int]:
    label, image = row["class_index"], table.parent / (row["path"] or "")
    if label is None or not label.strip().isdecimal():
        raise ValueError(f"{table}, line {line}: class_index is {label!r}, not a whole number.")
    if not image.is_file():
        raise ValueError(f"{table}, line {line}: there is no file {image}.")
    return View(image), int(label)


def demo_photographs(preprocessing: Preprocessing) -> tuple[Images, Images]:
    """Windows of 20 labelled photographs, for a demonstration: (calibration, held_out).

    Calibration windows lie in the left half of each photograph, held-out windows in its right
    half, so that no pixel is in both. They still show the same 20 scenes: what is measured on
    the held-out windows is no benchmark.

    Args:
        preprocessing: what the network expects.

    Returns:
        (calibration, held_out): 200 and 120 images; windows and their mirror images.

    Raises:
        ValueError: the photographs are not installed.

    Source: the ImageNet examples in the wheel of foolbox; only its files are read.
    """
    spec = importlib.util.find_spec("foolbox")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("data/imagenet_*.jpg"))
    if len(files) != DEMO_PHOTOGRAPHS:
        raise ValueError(
            "The demonstration's photographs come with the package foolbox; "
            'pip install "qubo-rounding[demo]".'
        )
    calibration = [row for file in files for row in _half(file, False, CALIBRATION_HEIGHTS)]
    held_out = [row for file in files for row in _half(file, True, HELD_OUT_HEIGHTS)]
    return _images(calibration, preprocessing), _images(held_out, preprocessing)


def _half(file: Path, right: bool, heights: Sequence[float]) -> list[tuple[View, int | None]]:
    """Square windows in one half of a photograph; heights from 0 (top) to 1 (bottom)."""
    with Image.open(file) as image:
        width, height = image.size
    side = min(width // 2, height)
    left = width - side if right else width // 2 - side
    label = int(file.stem.rpartition("_")[2])  # imagenet_07_609.jpg shows class 609
    windows = [(left, round(at * (height - side)), side, side) for at in heights]
    return [(View(file, window, mirror), label) for window in windows for mirror in (False, True)]
