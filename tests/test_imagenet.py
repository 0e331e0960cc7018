"""Images, models and their evaluation: real ones from the kit, small ones made here."""

from __future__ import annotations

import csv
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from qubo_rounding.evaluation import evaluate, predict
from qubo_rounding.imagenet import Images, demo_photographs, open_images
from qubo_rounding.models import Preprocessing, load_model

SMALL = Preprocessing(size=8, resize=8)


def photograph(file: Path, size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)
    return file


def table(file: Path, header: str, *rows: str) -> Path:
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def names(images: Images) -> list[str]:
    return [view.file.name for view in images.views]


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


# preprocessing


def test_preprocessing_cuts_the_centre_and_normalises(tmp_path: Path) -> None:
    image = Image.open(photograph(tmp_path / "a.png", (16, 12)))
    preprocessing = Preprocessing(8, 12, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    centre = np.asarray(image)[2:10, 4:12].astype(np.float64) / 255
    expected = (centre - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    result = preprocessing(image)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    size=st.integers(1, 12),
    margin=st.integers(0, 6),
    mode=st.sampled_from(["RGB", "L", "RGBA", "CMYK", "1"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_preprocessing_takes_any_image(
    width: int, height: int, size: int, margin: int, mode: str, interpolation: str
) -> None:
    preprocessing = Preprocessing(size, size + margin, interpolation=interpolation)
    result = preprocessing(Image.new(mode, (width, height)))
    assert result.shape == (3, size, size)
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 300}, "must fit"),
        ({"size": 0}, "must fit"),
        ({"interpolation": "nearest"}, "'bilinear' or 'bicubic'"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "none that is 0"),
    ],
)
def test_preprocessing_refuses_nonsense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**settings)


# folders and tables


def test_class_folders_of_imagenet_get_imagenet_s_classes(tmp_path: Path) -> None:
    for folder in ("n15075141", "n01440764", "n01484850"):
        photograph(tmp_path / folder / f"{folder}.jpg")
    images = open_images(tmp_path, SMALL)
    assert names(images) == ["n01440764.jpg", "n01484850.jpg", "n15075141.jpg"]
    assert labels_of(images) == [0, 2, 999]


def test_other_class_folders_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    for folder in ("n01484850", "dog", "cat"):
        photograph(tmp_path / folder / "x.PNG")
    assert labels_of(open_images(tmp_path, SMALL)) == [0, 1, 2]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", ".hidden.jpg"):
        photograph(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    images = open_images(str(tmp_path), SMALL)
    assert names(images) == ["a.png", "b.jpg"]
    assert images.labels is None
    assert [y for _, y in images] == [None]


def test_a_table_gives_paths_relative_to_itself(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/b.png"):
        photograph(tmp_path / name)
    file = table(tmp_path / "t.csv", "extra,path,class_index", "x,in/b.png,7", "y,in/a.png,3")
    images = open_images(file, SMALL)
    assert names(images) == ["b.png", "a.png"]
    assert labels_of(images) == [7, 3]


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [5]), (2, [2, 7]), (5, [1, 3, 5, 7, 9]), (99, list(range(10)))]
)
def test_a_limit_spreads_over_all_images(tmp_path: Path, limit: int, expected: list[int]) -> None:
    for index in range(10):
        photograph(tmp_path / f"{index}.png")
    images = open_images(tmp_path, SMALL, limit=limit)
    assert names(images) == [f"{index}.png" for index in expected]


def test_batches_come_in_order_and_again(tmp_path: Path) -> None:
    for index in range(7):
        photograph(tmp_path / f"class{index}" / "x.png", seed=index)
    images = open_images(tmp_path, SMALL, batch_size=3)
    first, second = list(images), list(images)
    assert len(images) == 7
    assert [x.shape for x, _ in first] == [(3, 3, 8, 8), (3, 3, 8, 8), (1, 3, 8, 8)]
    assert torch.equal(torch.cat([y for _, y in first if y is not None]), torch.arange(7))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    whole = torch.cat([x for x, _ in images.batches(100)])
    assert torch.equal(whole, torch.cat([x for x, _ in first]))
    alone = [SMALL(Image.open(view.file)) for view in images.views]
    assert torch.equal(whole, torch.stack(alone))


def test_a_place_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images; known are \.bmp, \.jpeg"):
        open_images(tmp_path, SMALL)
    with pytest.raises(ValueError, match="neither a folder of images nor a CSV file"):
        open_images(tmp_path / "nowhere", SMALL)
    with pytest.raises(ValueError, match="neither a folder of images nor a CSV file"):
        open_images(tmp_path / "nowhere.csv", SMALL)
    with pytest.raises(ValueError, match="holds no images"):
        open_images(table(tmp_path / "t.csv", "path,class_index"), SMALL)


def test_loose_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    photograph(tmp_path / "cat" / "x.png")
    photograph(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"holds loose images \(loose.png\) beside folders"):
        open_images(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("path,label", "a.png,1", "no column class_index; it needs path and class_index"),
        ("file,class_index", "a.png,1", "no column path"),
        ("file,label", "a.png,1", "no column class_index and no column path"),
        ("path,class_index", "a.png,dog", "line 2: class_index is 'dog'"),
        ("path,class_index", "a.png,-1", "line 2: class_index is '-1'"),
        ("path,class_index", "a.png", "line 2: class_index is None"),
        ("class_index,path", "3", "line 2: there is no file"),
        ("path,class_index", "b.png,1", "line 2: there is no file .*b.png"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, header: str, row: str, message: str
) -> None:
    photograph(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        open_images(table(tmp_path / "t.csv", header, row), SMALL)


@pytest.mark.parametrize("content", [b"no image", b""])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    photograph(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        list(open_images(tmp_path, SMALL))


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    file = photograph(tmp_path / "half.jpg", (64, 64))
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read as an image"):
        list(open_images(tmp_path, SMALL))


def test_counts_below_one_are_refused(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    with pytest.raises(ValueError, match="limit is 0"):
        open_images(tmp_path, SMALL, limit=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        open_images(tmp_path, SMALL, batch_size=0)


# models


def test_efficientnet_lite0_knows_the_kit_s_photographs(
    kit: Path, efficientnet: tuple[nn.Module, Preprocessing]
) -> None:
    model, preprocessing = efficientnet
    images = open_images(kit / "images" / "validation", preprocessing, limit=60, batch_size=20)
    logits = predict(model, images)
    result = evaluate(logits, images.labels, logits)
    assert not model.training
    assert logits.shape == (60, 1000)
    assert logits.dtype == torch.float32
    assert result.top1 is not None
    assert result.top1 > 0.75
    assert result.agreement == 1.0
    assert result.kl == 0.0


def test_the_kit_s_folders_and_its_table_agree(kit: Path, tmp_path: Path) -> None:
    with (kit / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "calibration"]
    file = table(
        tmp_path / "calibration.csv",
        "path,class_index",
        *(f"{kit / row['path']},{row['class_index']}" for row in rows),
    )
    by_table = open_images(file, Preprocessing())
    by_folder = open_images(kit / "images" / "calibration", Preprocessing())
    assert len(by_folder) == len(rows) == 1000
    found = dict(zip(by_folder.views, labels_of(by_folder), strict=True))
    assert found == dict(zip(by_table.views, labels_of(by_table), strict=True))


def test_the_demo_keeps_its_photographs_halves_apart(
    efficientnet: tuple[nn.Module, Preprocessing],
) -> None:
    model, preprocessing = efficientnet
    calibration, held_out = demo_photographs(preprocessing)
    assert (len(calibration), len(held_out)) == (200, 120)
    edges: dict[Path, int] = {}
    for left, _, width, _ in (view.window for view in calibration.views if view.window):
        assert left >= 0
        assert width >= 224
    for view in calibration.views:
        assert view.window is not None
        edges[view.file] = max(edges.get(view.file, 0), view.window[0] + view.window[2])
    assert len(edges) == 20
    assert all(view.window and view.window[0] >= edges[view.file] for view in held_out.views)
    assert len(set(calibration.views)) == 200
    assert len(set(held_out.views)) == 120
    assert held_out.labels is not None
    some = Images(held_out.views[::4], held_out.labels[::4], preprocessing)
    result = evaluate(predict(model, some), some.labels)
    assert result.top1 is not None
    assert result.top1 > 0.65


MODEL_FILE = textwrap.dedent(
    """
    from torch import nn

    def plain():
        return nn.Linear(2, 3)

    def with_preprocessing():
        return nn.Linear(2, 3), dict(size=32, mean=[0.5, 0.5, 0.5])

    def with_resize():
        return nn.Linear(2, 3), dict(size=32, resize=40, std=[0.5, 0.5, 0.5])

    def odd_key():
        return nn.Linear(2, 3), dict(crop=32)

    def odd_model():
        return "a network"

    number = 3
    """
)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    file = tmp_path / "networks.py"
    file.write_text(MODEL_FILE)
    return file


@pytest.mark.parametrize(
    ("function", "preprocessing"),
    [
        ("plain", Preprocessing()),
        ("with_preprocessing", Preprocessing(32, 37, mean=(0.5, 0.5, 0.5))),
        ("with_resize", Preprocessing(32, 40, std=(0.5, 0.5, 0.5))),
    ],
)
def test_a_function_in_a_file_makes_a_model(
    model_file: Path, function: str, preprocessing: Preprocessing
) -> None:
    model, found = load_model(f"{model_file}:{function}")
    assert isinstance(model, nn.Linear)
    assert not model.training
    assert found == preprocessing


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("odd_key", "Preprocessing has no 'crop'; it has size, resize, mean, std"),
        ("odd_model", "returned str; it must return an nn.Module"),
        ("number", "defines no function 'number'"),
        ("absent", "defines no function 'absent'"),
    ],
)
def test_a_function_that_makes_no_model_is_refused(
    model_file: Path, function: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(f"{model_file}:{function}")


@pytest.mark.parametrize("spec", ["", "resnet18", "hub:resnet18", "efficientnet_lite0:x"])
def test_an_unknown_model_is_refused_with_what_is_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match="give efficientnet_lite0, torchvision:NAME, timm:NAME"):
        load_model(spec)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*nets\.py to take make\(\) from"):
        load_model(f"{tmp_path / 'nets.py'}:make")


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        ("efficientnet_lite0", "efficientnet_lite_pytorch", "demo"),
        ("torchvision:resnet18", "torchvision.models", "torchvision"),
        ("timm:resnet18", "timm", "timm"),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, spec: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'pip install "qubo-rounding\[{extra}\]"'):
        load_model(spec)


def test_the_demo_without_its_photographs_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "qubo-rounding\[demo\]"'):
        demo_photographs(Preprocessing())


def test_a_torchvision_model_brings_its_weights_and_preprocessing(
    torchvision_operators: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision.models")
    published = models.squeezenet1_1(weights=None)
    asked: dict[str, object] = {}

    def downloaded(weights: object, **options: object) -> dict[str, Tensor]:
        asked.update(options)
        return published.state_dict()

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", downloaded)
    model, preprocessing = load_model("torchvision:squeezenet1_1")
    assert asked == {"weights_only": True}
    assert preprocessing == Preprocessing()
    assert not model.training
    for name, weight in published.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    with pytest.raises(ValueError, match="torchvision has no model 'resnet19'"):
        load_model("torchvision:resnet19")


def test_a_timm_model_brings_its_weights_and_preprocessing(
    torchvision_operators: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm", reason="timm not installed; the timm extra brings it")
    create = timm.create_model
    asked: list[bool] = []

    def without_download(name: str, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        return create(name)

    monkeypatch.setattr(timm, "create_model", without_download)
    model, preprocessing = load_model("timm:mobilenetv2_050.lamb_in1k")
    assert asked == [True]
    assert preprocessing == Preprocessing(224, 256, interpolation="bicubic")
    assert not model.training
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        load_model("timm:resnet19")


# evaluation


def test_evaluation_counts_what_a_loop_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 40, 9, generator=generator)
    labels = torch.randint(9, (40,), generator=generator)
    order = [sorted(range(9), key=lambda k: -float(row[k])) for row in logits]
    wanted, given = (np.exp(x.double().numpy()) for x in (reference, logits))
    wanted, given = (x / x.sum(1, keepdims=True) for x in (wanted, given))
    result = evaluate(logits, labels, reference)
    assert result.images == 40
    assert result.top1 == np.mean([o[0] == y for o, y in zip(order, labels, strict=True)])
    assert result.top5 == np.mean([int(y) in o[:5] for o, y in zip(order, labels, strict=True)])
    assert result.agreement == np.mean(
        [o[0] == int(row.argmax()) for o, row in zip(order, reference, strict=True)]
    )
    assert result.kl == pytest.approx(np.mean(np.sum(wanted * np.log(wanted / given), 1)))


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (50, 100, (0.4038, 0.5962))],
)
def test_the_interval_is_wilson_s(hits: int, n: int, expected: tuple[float, float]) -> None:
    logits = torch.eye(2)[torch.arange(n).lt(hits).long()]
    result = evaluate(logits, torch.ones(n, dtype=torch.int64))
    assert result.top1 == hits / n
    assert result.top1_interval == pytest.approx(expected, abs=1e-4)
    assert result.top5 == 1  # of two classes
    assert result.top5_interval == pytest.approx((n / (n + 1.959964**2), 1), abs=1e-4)


def test_what_is_unknown_is_none() -> None:
    result = evaluate(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert result.images == 3
    assert {result.top1, result.top5, result.agreement, result.kl} == {None}
    assert {result.top1_interval, result.top5_interval} == {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"it must be \(n, classes\)"),
        ((torch.zeros(3, 2), torch.zeros(4).long()), "3 answers and labels of shape"),
        ((torch.zeros(2, 2), torch.tensor([0, 2])), "run from 0 to 2, the network's .* 0 to 1"),
        ((torch.zeros(2, 2), None, torch.zeros(2, 3)), "must answer the same images"),
        ((torch.tensor([[0.0, float("nan")]]),), "NaN or infinite"),
        ((torch.zeros(1, 2), None, torch.full((1, 2), float("inf"))), "float network's logits"),
    ],
)
def test_answers_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)


def test_predict_reads_any_loader() -> None:
    model = nn.Linear(4, 3).eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = model(x).detach()
    assert torch.equal(predict(model, [x]), expected)
    assert torch.equal(predict(model, [(x, None)]), expected)
    assert predict(model, iter([x[:2], x[2:]])).shape == (5, 3)
    assert not predict(model, [x]).requires_grad


def test_predict_refuses_what_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="There are no images"):
        predict(nn.Identity(), [])
    with pytest.raises(ValueError, match=r"returns \(2, 3, 4\); a classifier"):
        predict(nn.Identity(), [torch.zeros(2, 3, 4)])


def test_augmented_images_are_themselves_and_windows_of_them(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        photograph(tmp_path / name / f"{name}.png", (24 + number, 20), seed=number)
    images = open_images(tmp_path, SMALL)
    more = images.augmented(3, seed=5)
    assert more.views[:3] == images.views
    assert labels_of(more) == labels_of(images) * 3
    assert names(more) == names(images) * 3
    assert [view.mirrored for view in more.views] == [False] * 3 + [True] * 3 + [False] * 3
    for view in more.views[3:]:
        assert view.window is not None
        left, top, width, height = view.window
        with Image.open(view.file) as image:
            full = image.size
        assert min(left, top) >= 0
        assert left + width <= full[0]
        assert top + height <= full[1]
        assert 0.75 <= width / full[0] <= 1
        assert 0.75 <= height / full[1] <= 1
    assert images.augmented(3, seed=5).views == more.views
    assert images.augmented(3, seed=6).views != more.views
    assert images.augmented(1).views == images.views
    again, before = (images.views[-1].window for images in (more.augmented(2), more))
    assert again is not None
    assert before is not None
    assert again[2] <= before[2]
    with pytest.raises(ValueError, match="views is 0"):
        images.augmented(0)
