"""Which weights to move together: those whose inputs go together.

Where two inputs are alike, moving one weight up and the other down costs little, though either move
alone costs much. An order that puts like columns beside each other keeps such pairs within the
blocks that sweeps walk through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

MATCHINGS = 4  # so many partners a column has, one at a time


@dataclass(frozen=True)
class Pairing:
    """Columns in an order of their own, cut into blocks, and matchings of those of a block.

    Args:
        order: int64 (g, d), which column comes at each place.
        pairs: uint32 (g, MATCHINGS, blocks, 2, n), places counted from the block's beginning; those
            behind the last pair are 0. No place is in two pairs of a matching, and no pair in two
            matchings.
    """

    order: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, gram: Tensor, width: int) -> Pairing:
        """The pairing for Gram matrices (g, d, d) in blocks of so many columns."""
        like = _likeness(gram).cpu().numpy()
        order = np.stack([_chain(group) for group in like])
        g, d = order.shape
        pairs = np.zeros((g, MATCHINGS, -(-d // width), 2, width // 2), np.uint32)
        for group, columns in enumerate(order):
            for number, begin in enumerate(range(0, d, width)):
                block = columns[begin : begin + width]
                _match(like[group][np.ix_(block, block)], pairs[group, :, number])
        return cls(order, pairs)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """An array (g, ..., d) with its columns in this order."""
        return np.stack([rows[group][..., columns] for group, columns in enumerate(self.order)])

    def apply_to_both(self, gram: np.ndarray) -> np.ndarray:
        """Matrices (g, d, d) with rows and columns in this order."""
        found = np.empty_like(gram)  # filled group by group: a stack of them would be a second copy
        for group, columns in enumerate(self.order):
            found[group] = gram[group][np.ix_(columns, columns)]
        return found

    def undo(self, rows: np.ndarray) -> np.ndarray:
        """What `apply` was given."""
        found = np.empty_like(rows)
        for group, columns in enumerate(self.order):
            found[group][..., columns] = rows[group]
        return found


def _likeness(gram: Tensor) -> Tensor:
    """float32 (g, d, d): |G_jk| / sqrt(|G_jj G_kk|), zero for columns that nothing flows into."""
    size = gram.diagonal(dim1=1, dim2=2).abs().rsqrt()
    size = torch.where(size.isfinite(), size, 0.0).float()
    return gram.float().mul_(size.unsqueeze(2)).mul_(size.unsqueeze(1)).abs_()


@numba.njit(cache=True, nogil=True)
def _chain(like):  # pyright: ignore
    """All columns, each followed by the one most like it of those that are left."""
    d = len(like)
    order, free = np.zeros(d, np.int64), np.ones(d, np.bool_)
    free[0] = False
    for n in range(1, d):
        row, most = like[order[n - 1]], np.float32(-1)
        for j in range(d):
            if free[j] and row[j] > most:
                order[n], most = j, row[j]
        free[order[n]] = False
    return order


@numba.njit(cache=True, nogil=True)
def _match(like, pairs):  # pyright: ignore
    """Matchings of one block, the likest pairs that are left first; pairs (MATCHINGS, 2, n)."""
    n = len(like)
    ranked = np.argsort(-like.ravel(), kind="mergesort")
    used = np.zeros(n * n, np.bool_)
    for matching in pairs:
        free, count = np.ones(n, np.bool_), 0
        for pair in ranked:
            j, k = pair // n, pair % n
            if j < k and free[j] and free[k] and not used[pair]:
                matching[0, count], matching[1, count] = j, k
                free[j] = free[k] = False
                used[pair] = True
                count += 1
