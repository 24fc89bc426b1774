"""How alike two sets of features of the same things are: shared nearest neighbours, CKA and CKNNA. Pure arithmetic, in blocks.

The linear kernels K = X X^T and L = Y Y^T of N items are never held whole. HSIC, which compares them, comes in two forms: the usual
one, which centres both and is far above 0 for unrelated features once D is not far below N; and the unbiased one of Song et al.
(2012), which leaves the diagonals out and is 0 on average for unrelated features. Neighbours are by inner product, without oneself.

Shapes: N items, D and E widths, k neighbours. Arithmetic is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLAMPED = 0.95  # quantile of |x| beyond which values are outliers: some few channels would decide who is near to whom
AT_ONCE = 4_000_000  # numbers of a block: 32 MB
NOTHING = 1e-12  # of a kernel's mean square: a variance below this is rounding
ROWS = 512  # of float32 features looked at together


# ---- features as they are compared


def quantile(layers: Sequence[np.ndarray], share: float = CLAMPED) -> float:
    """The value that this share of all |x| in all layers lie below: the int(share * count)-th, exactly. NaN if one is not finite.

    Positive floats sort as their bits do, so it is found in two counts, of upper and of lower halves, and nothing is sorted.
    """
    wanted, found = int(share * sum(layer.size for layer in layers)), 0
    for shift in (16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for layer in layers:
            for start in range(0, len(layer), ROWS):
                bits = np.abs(np.ascontiguousarray(layer[start : start + ROWS], dtype=np.float32)).view(np.uint32).ravel()
                chosen = bits if shift else bits[bits >> 16 == found]
                counts += np.bincount((chosen >> shift) & 0xFFFF, minlength=1 << 16)
        if shift and counts[0x7F80:].any():  # infinity and what is no number have these upper halves
            return math.nan
        below = np.cumsum(counts)
        half = int(np.searchsorted(below, wanted, side="right"))
        wanted -= int(below[half - 1]) if half else 0
        found = found << 16 | half
    return float(np.array(found, np.uint32).view(np.float32))


def prepared(layer: np.ndarray, limit: float, device: torch.device | str = "cpu") -> Tensor:
    """(N, D): clamped to +-limit, then of length 1."""
    rows = torch.from_numpy(np.array(layer)).to(device).clamp_(-limit, limit)
    return torch.nn.functional.normalize(rows.double(), dim=1)


# ---- neighbours


def neighbours(x: Tensor, k: int) -> Tensor:
    """(N, k) the items nearest to each by inner product, itself left out."""
    found = torch.empty(len(x), k, dtype=torch.long, device=x.device)  # a list of parts would lie between blocks and keep their memory
    for rows, kernel in _blocks(x):
        kernel[torch.arange(len(rows), device=x.device), rows] = -torch.inf
        found[rows] = kernel.topk(k, dim=1).indices
    return found


def shared(a: Tensor, b: Tensor) -> Tensor:
    """(N,) the share of each item's k neighbours (N, k) on one side that it has on the other too."""
    return (a[:, :, None] == b[:, None, :]).any(dim=2).double().mean(dim=1)


# ---- kernels


@dataclass(frozen=True)
class Sums:
    """What HSIC needs to know of two kernels (N, N), diagonals k and l: sums of their entries and of products."""

    n: int
    products: float  # of K_ij L_ji
    rows: float  # (1^T K)(L 1)
    x: float  # of K
    y: float  # of L
    x_diagonal: float = 0.0
    y_diagonal: float = 0.0
    diagonals: float = 0.0  # k^T l
    x_rows: float = 0.0  # (1^T K) l
    y_rows: float = 0.0  # k^T (L 1)

    def biased(self) -> float:
        """tr(K H L H) / (N - 1)^2, H the centring matrix."""
        return (self.products - 2 * self.rows / self.n + self.x * self.y / self.n**2) / (self.n - 1) ** 2

    def unbiased(self) -> float:
        """The same of kernels without diagonals, such that unrelated ones give 0 on average. N is at least 4."""
        n = self.n
        products, x, y = self.products - self.diagonals, self.x - self.x_diagonal, self.y - self.y_diagonal
        rows = self.rows - self.x_rows - self.y_rows + self.diagonals
        return (products + x * y / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


class Moments:
    """The sums of two linear kernels from moments of the features, (D, E) and smaller: items may come a batch at a time."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """More items, (N, D) and (N, E)."""
        for a, b in zip(x.split(16 * ROWS), y.split(16 * ROWS), strict=True):
            a, b = a.double(), b.double()
            x2, y2 = _diagonal(a), _diagonal(b)
            more = (a.T @ b, a.sum(dim=0), b.sum(dim=0), a.T @ y2, b.T @ x2, torch.stack([x2.sum(), y2.sum(), x2 @ y2]))
            self._sums = tuple(old.add_(new) for old, new in zip(self._sums, more, strict=True)) if self._sums else more
        self._n += len(x)

    def sums(self) -> Sums:
        """Of all that were added."""
        cross, x, y, x_y2, y_x2, (x2, y2, both) = self._sums
        return Sums(
            n=self._n,
            products=float(cross.square().sum()),
            rows=float(x @ cross @ y),
            x=float(x @ x),
            y=float(y @ y),
            x_diagonal=float(x2),
            y_diagonal=float(y2),
            diagonals=float(both),
            x_rows=float(x @ x_y2),
            y_rows=float(y @ y_x2),
        )


def sums(x: Tensor, y: Tensor) -> Sums:
    """Of the linear kernels of (N, D) and (N, E): from moments, or block by block where that is less work."""
    if x.shape[1] * y.shape[1] <= len(x) * (x.shape[1] + y.shape[1]):
        moments = Moments()
        moments.add(x, y)
        return moments.sums()
    products, x2, y2 = 0.0, _diagonal(x), _diagonal(y)
    x_rows, y_rows = torch.empty_like(x2), torch.empty_like(y2)
    for (rows, kernel), (_, other) in zip(_blocks(x), _blocks(y), strict=True):
        products += float((kernel * other).sum())
        x_rows[rows], y_rows[rows] = kernel.sum(dim=1), other.sum(dim=1)
    return Sums(
        n=len(x),
        products=products,
        rows=float(x_rows @ y_rows),
        x=float(x_rows.sum()),
        y=float(y_rows.sum()),
        x_diagonal=float(x2.sum()),
        y_diagonal=float(y2.sum()),
        diagonals=float(x2 @ y2),
        x_rows=float(x_rows @ y2),
        y_rows=float(y_rows @ x2),
    )


def cka(xy: Sums, xx: Sums, yy: Sums, hsic: Callable[[Sums], float] = Sums.unbiased) -> float:
    """HSIC of two kernels over the geometric mean of each one's with itself: 1 for features equal up to a rotation and a scale.

    Features that do not vary are like nothing: 0.
    """
    own = [hsic(one) for one in (xx, yy)]
    varies = all(value > NOTHING * one.products / one.n**2 for value, one in zip(own, (xx, yy), strict=True))
    return hsic(xy) / math.sqrt(own[0] * own[1]) if varies and min(own) > 0 else 0.0


def cknna(x: Tensor, y: Tensor, near_x: Tensor, near_y: Tensor) -> float:
    """Unbiased CKA of kernels in which only entries between neighbours remain: neighbours on both sides (N, k), and of the two in the
    denominator those on their own. A row has no more than k of them, so that such kernels are lists.
    """
    own_x, own_y = torch.ones_like(near_x, dtype=torch.bool), torch.ones_like(near_y, dtype=torch.bool)
    both = (near_x[:, :, None] == near_y[:, None, :]).any(dim=2)
    return cka(_listed(x, y, near_x, both), _listed(x, x, near_x, own_x), _listed(y, y, near_y, own_y))


def _listed(x: Tensor, y: Tensor, near: Tensor, kept: Tensor) -> Sums:
    """Of two linear kernels that are 0 but where an item meets those of its neighbours (N, k) that are kept."""
    n, columns = len(x), near[kept]
    rows = torch.arange(n, device=x.device)[:, None].expand_as(near)[kept]
    of_x, of_y = (_entries(side, rows, columns) for side in (x, y))
    keys, turned = rows * n + columns, columns * n + rows
    order = keys.argsort()
    at = order[torch.searchsorted(keys[order], turned).clamp(max=max(0, len(keys) - 1))]  # where the turned entry is, if it is
    down, along = (torch.zeros(n, dtype=x.dtype, device=x.device) for _ in range(2))
    return Sums(
        n=n,
        products=float((of_x * of_y[at])[keys[at] == turned].sum()),
        rows=float(down.index_add_(0, columns, of_x) @ along.index_add_(0, rows, of_y)),
        x=float(of_x.sum()),
        y=float(of_y.sum()),
    )


def _entries(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of the linear kernel of (N, D), at these places."""
    found = torch.empty(len(rows), dtype=x.dtype, device=x.device)  # as in `neighbours`
    for some in torch.arange(len(rows), device=x.device).split(max(1, AT_ONCE // x.shape[1])):
        found[some] = torch.linalg.vecdot(x[rows[some]], x[columns[some]])
    return found


def _diagonal(x: Tensor) -> Tensor:
    return x.square().sum(dim=1)


def _blocks(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers and those rows of the linear kernel."""
    for rows in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // len(x))):
        yield rows, x[rows] @ x.T
