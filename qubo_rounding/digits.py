"""Small networks for theory, trained in seconds on real handwritten digits that come along.

Small enough that the Hessian of all weights together is tiny, and that `train_micro`'s true loss
can be computed for every candidate there is. All is float64 and follows from the seed.

Source: 1,797 digits of 8 x 8 pixels, Alpaydin and Kaynak 1998, UCI Machine Learning Repository,
    as scikit-learn brings them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.extras import imported

Labelled = tuple[Tensor, Tensor]

_SPLIT_SEED = 0
_MEAN, _STD = 0.3, 0.4  # of the pixels, about
# Added to the loss times the squared parameters: digits are separable, and the loss alone would
# drive the weights to infinity and its own Hessian to zero.
_DECAY = 1e-3


@dataclass(frozen=True, eq=False)
class DigitsData:
    """Images float64 (n, 1, height, width) with labels int64 (n,), each a batch for a loader.

    Args:
        train: two thirds of them.
        calibration: a sixth, to make problems from.
        test: a sixth, to judge by.
    """

    train: Labelled
    calibration: Labelled
    test: Labelled


@dataclass(frozen=True, eq=False)
class DigitsNetwork:
    """A trained network, in eval mode, and its data.

    Args:
        model: maps images to logits.
        data: what it was trained on, and what not.
    """

    model: nn.Sequential
    data: DigitsData


def digits_data(
    size: tuple[int, int] = (8, 8), digits: Sequence[int] = tuple(range(10))
) -> DigitsData:
    """The digits, shuffled and split always alike.

    Args:
        size: height and width that the 8 x 8 pixels are averaged to, 1 to 8.
        digits: which of them; the i-th has label i.

    Raises:
        ValueError: size or digits outside what is allowed; the extra `theory` is not installed.
    """
    if not all(1 <= side <= 8 for side in size):
        raise ValueError(f"size is {size}; give height and width from 1 to 8.")
    if not set(digits) <= set(range(10)) or len(set(digits)) != len(digits) or len(digits) < 2:
        raise ValueError(f"digits are {list(digits)}; give at least two of 0 to 9, each once.")
    images, labels = _all_digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    order = order[torch.isin(labels[order], torch.tensor(digits))]
    images = F.adaptive_avg_pool2d((images[order, None] - _MEAN) / _STD, size)
    labels = torch.stack([labels[order] == digit for digit in digits]).int().argmax(dim=0)
    n = len(labels)
    parts = [slice(0, 4 * n // 6), slice(4 * n // 6, 5 * n // 6), slice(5 * n // 6, n)]
    return DigitsData(*((images[part], labels[part]) for part in parts))


def train_mlp(
    hidden: int = 8,
    *,
    size: tuple[int, int] = (4, 4),
    digits: Sequence[int] = tuple(range(10)),
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
) -> DigitsNetwork:
    """A network with one hidden layer; layers `hidden` and `output`, 208 weights as it stands.

    Args:
        hidden: units of the hidden layer.
        size, digits: as for `digits_data`.
        activation: class of the function between the layers; nn.Tanh makes a smooth loss.
        seed: of the first weights.

    Raises:
        ValueError: as for `digits_data`.
    """
    data = digits_data(size, digits)
    with _drawing(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            flat=nn.Flatten(),
            hidden=nn.Linear(size[0] * size[1], hidden),
            activation=activation(),
            output=nn.Linear(hidden, len(digits)),
        )
    return DigitsNetwork(_trained(nn.Sequential(layers), data.train, iterations=200), data)


def train_micro(seed: int = 0) -> DigitsNetwork:
    """A network of 18 weights that tells 0, 4 and 7 apart, from 3 x 2 pixels and 2 hidden units.

    Each of its up/down candidates, 2^18 at most, can be tried (`every_loss`).

    Args:
        seed: of the first weights.

    Raises:
        ValueError: the extra `theory` is not installed.
    """
    return train_mlp(2, size=(3, 2), digits=(0, 4, 7), seed=seed)


def train_cnn(seed: int = 0) -> DigitsNetwork:
    """A mobile network in small: layers `stem`, `depthwise`, `pointwise`, `head`; 476 weights.

    Args:
        seed: of the first weights.

    Raises:
        ValueError: the extra `theory` is not installed.
    """
    data = digits_data()
    with _drawing(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Conv2d(1, 6, 3, stride=2, padding=1),
            stem_activation=nn.ReLU(),
            depthwise=nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
            depthwise_activation=nn.ReLU(),
            pointwise=nn.Conv2d(6, 8, 1),
            pointwise_activation=nn.ReLU(),
            flat=nn.Flatten(),
            head=nn.Linear(8 * 2 * 2, 10),
        )
    return DigitsNetwork(_trained(nn.Sequential(layers), data.train, iterations=100), data)


def _all_digits() -> Labelled:
    digits = imported("sklearn.datasets", "theory").load_digits()
    return torch.from_numpy(digits.images / 16), torch.from_numpy(digits.target).long()


def _trained(model: nn.Sequential, data: Labelled, iterations: int) -> nn.Sequential:
    """The model after L-BFGS on all images at once, which ends close to a minimum."""
    model = model.double()
    images, labels = data
    parameters = list(model.parameters())
    minimiser = torch.optim.LBFGS(
        parameters, max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def value() -> float:
        minimiser.zero_grad()
        decay = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        total = F.cross_entropy(model(images), labels) + _DECAY * decay
        total.backward()
        return float(total.detach())

    with _one_thread(), torch.enable_grad():
        minimiser.step(value)
    minimiser.zero_grad()
    return model.eval()


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """First weights are drawn from the seed, and the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order whatever the number of threads; a minimiser would amplify the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
