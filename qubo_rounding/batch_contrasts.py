"""How much a layer's Gram matrix hangs on the images it was made from.

Sums of x x' over batches, half of them counted positive and half negative, vanish but for chance;
and so does the Gram matrix differ from that of all images there are. Only the Frobenius norm of
such a contrast is wanted, so it is not kept: products with random vectors are, some contrasts with
a vector each (Hutchinson's estimator).

Source: Schäfer, Strimmer 2005, Stat. Appl. Genet. Mol. Biol. 4, 32, after Ledoit, Wolf 2004.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ONE_BATCH = (
    "how far a Gram matrix can be trusted shows where batches differ, and it was made from one; "
    "give more images or smaller batches, or shrink by a number."
)
_PROBES, _FEWEST = 32, 8  # contrasts of a layer; the groups of one are averaged over, too


def probes_of(groups: int) -> int:
    """k, the number of contrasts kept of a layer with so many groups."""
    return max(_FEWEST, _PROBES // groups)


def contrast_bytes(g: int, d: int) -> int:
    """What the contrasts of one layer take while they grow."""
    return 8 * 4 * g * d * probes_of(g)


class BatchContrasts:
    """Growing contrasts of one layer: signed sums over its batches, the signs differ in each.

    Args:
        g, d: shape of the sums they follow.
        device: where those lie.
    """

    def __init__(self, g: int, d: int, device: torch.device) -> None:
        k = probes_of(g)
        self._vectors = _vectors(d, k, device)
        shape, options = (g, d), {"dtype": torch.float64, "device": device}
        # What was followed so far: product with the vectors, diagonal, sum of x, number of patches.
        self._seen = [torch.zeros(*shape, k, **options)]
        self._seen += [torch.zeros(*size, 1, **options) for size in (shape, shape, (g, 1))]
        self._signed = [torch.zeros(*seen.shape[:2], k, **options) for seen in self._seen]

    def follow(self, second: Tensor, total: Tensor, count: int, block: int, batch: int) -> None:
        """Take note of what a batch has added, or a part of it.

        Args:
            second: (g, d, d) sum of x x' so far; below the diagonal blocks it is not looked at.
            total: (g, d) sum of x so far.
            count: patches so far.
            block: columns of a diagonal block.
            batch: its number, counted from 0.
        """
        products = _symmetric_product(second, self._vectors, block)
        diagonal = second.diagonal(dim1=1, dim2=2).clone()
        patches = torch.full_like(self._seen[3], count)
        now = [products, diagonal.unsqueeze(2), total.clone().unsqueeze(2), patches]
        signs = _signs(batch, self._vectors.shape[1]).to(second.device)
        for signed, new, old in zip(self._signed, now, self._seen, strict=True):
            signed += signs * (new - old)
        self._seen = now

    def finish(self, reference: Tensor) -> Tensor:
        """(g, 3 d + 1, k) contrasts of x, where what was followed are sums of x - reference (g, d).

        Of every contrast: its product with a vector, its diagonal, the signed sum of x, the signed
        number of patches.
        """
        products, diagonal, total, count = self._signed
        r = reference.unsqueeze(2)
        return torch.cat(
            [
                products
                + _outer_product(r, total + count * r, self._vectors)
                + _outer_product(total, r, self._vectors),
                diagonal + 2 * r * total + count * r * r,
                total + count * r,
                count,
            ],
            dim=1,
        )


def sampling_share(contrasts: Tensor, moments: Tensor, mean: Tensor | None, count: int) -> float:
    """The share of a Gram matrix's off-diagonal part that is chance, in [0, 1], to thousandths.

    That is the estimated sum of the variances of its entries over the sum of their squares: the
    shrinkage towards the diagonal that leaves the least expected squared error.

    Args:
        contrasts: (g, 3 d + 1, k), see `BatchContrasts.finish`.
        moments: (g, d, d), second moments, central ones where a mean is given.
        mean: (g, d) the mean of x, or None.
        count: number of patches.

    Raises:
        ValueError: there was one batch only.
    """
    products, diagonal, total, signed = _parts(contrasts)
    patches = count * count - signed[0, 0].square()
    if not bool((patches > 0).all()):
        raise ValueError(ONE_BATCH)
    vectors = _vectors(moments.shape[1], contrasts.shape[2], moments.device)
    if mean is not None:
        m = mean.unsqueeze(2)
        products = (
            products
            - _outer_product(m, total - signed * m, vectors)
            - _outer_product(total, m, vectors)
        )
        diagonal = diagonal - 2 * m * total + signed * m * m
    own = moments.diagonal(dim1=1, dim2=2)
    products = products - signed * (moments @ vectors)
    diagonal = diagonal - signed * own.unsqueeze(2)
    # Of every contrast the squares off its diagonal, expected over the signs of the vectors.
    chance = ((products.square().sum((0, 1)) - diagonal.square().sum((0, 1))) / patches).mean()
    size = torch.linalg.vector_norm(moments).square() - own.square().sum()
    share = float(chance / size) if float(size) > 0 else 0.0
    return round(min(max(share, 0.0), 1.0), 3)  # the last bits may depend on how sums were made


def _parts(contrasts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = (contrasts.shape[1] - 1) // 3
    products, diagonal, total, count = contrasts.split([d, d, d, 1], dim=1)
    return products, diagonal, total, count


def _outer_product(left: Tensor, right: Tensor, vectors: Tensor) -> Tensor:
    """(g, d, k): column by column left right' v, of (g, d, 1 | k)."""
    return left * (right * vectors).sum(1, keepdim=True)


def _symmetric_product(upper: Tensor, vectors: Tensor, block: int) -> Tensor:
    """(g, d, k) products of a symmetric matrix, of whose lower blocks nothing is read."""
    d = upper.shape[1]
    if d <= block:
        return upper @ vectors
    products = upper.new_zeros(len(upper), *vectors.shape)
    for start in range(0, d, block):
        rows, after = slice(start, start + block), slice(start + block, d)
        products[:, rows] += upper[:, rows, start:] @ vectors[start:]
        products[:, after] += upper[:, rows, after].mT @ vectors[rows]
    return products


def _signs(batch: int, k: int) -> Tensor:
    """(k,) the signs of a batch: two in a row have opposite ones, so that each has its match."""
    first = _coins(1 + batch // 2, (k,))
    return first if batch % 2 == 0 else -first


def _vectors(d: int, k: int, device: torch.device) -> Tensor:
    """(d, k)."""
    return _coins(0, (d, k)).to(device)


def _coins(seed: int, shape: tuple[int, ...]) -> Tensor:
    """float64 of -1 and 1."""
    return torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], shape))
