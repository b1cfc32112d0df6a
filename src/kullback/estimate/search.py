"""Exact nearest-neighbour search in Euclidean distance: a k-d tree in few dimensions, blocks of distances in many.

Both take points (n, d) and queries (N, d), float64 on the CPU, and give the same answers up to rounding. Measured
for 10,000 × 10,000 points of overlapping Normals on two cores, the tree takes a half of the time in 10 dimensions, 0.7
in 12 and more from 15 on; between clouds far apart it takes longer. Both use as many cores as PyTorch does.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

TREE_DIMENSIONS = 10
_BLOCK_CELLS = 1 << 23  # distances held at once by the blocked search: 64 MiB
_ROUNDING = 1.0 + 1e-12  # a point at the radius counts as inside, whatever the last bits of its distance


class Search(Protocol):
    """A set of points that can be asked."""

    def kth_distance(self, queries: Tensor, k: int) -> Tensor:
        """The distance (N,) to the k-th nearest point, k from 1; a query that is itself a point finds itself first."""

    def count_within(self, queries: Tensor, radius: Tensor) -> Tensor:
        """How many points (N,) lie within radius (N,), boundary included."""


def search(points: Tensor) -> Search:
    """The faster exact search for points of this dimension."""
    return Tree(points) if points.shape[1] <= TREE_DIMENSIONS else Blocks(points)


class Tree:
    """SciPy's k-d tree."""

    def __init__(self, points: Tensor) -> None:
        from scipy.spatial import cKDTree  # type: ignore[import-untyped]

        self._tree = cKDTree(points.numpy())

    def kth_distance(self, queries: Tensor, k: int) -> Tensor:
        distances, _ = self._tree.query(queries.numpy(), k=[k], workers=torch.get_num_threads())
        return torch.from_numpy(distances[:, 0])

    def count_within(self, queries: Tensor, radius: Tensor) -> Tensor:
        counts = self._tree.query_ball_point(
            queries.numpy(), radius.numpy() * _ROUNDING, return_length=True, workers=torch.get_num_threads()
        )
        return torch.from_numpy(counts.astype(np.int64))


class Blocks:
    """All distances, a block of queries at a time."""

    def __init__(self, points: Tensor) -> None:
        self._points = points

    def kth_distance(self, queries: Tensor, k: int) -> Tensor:
        def kth(block: Tensor) -> Tensor:
            distances = self._distances(block)
            return distances.min(-1).values if k == 1 else distances.topk(k, largest=False).values[:, -1]

        return torch.cat([kth(block) for block in self._blocks(queries)])

    def count_within(self, queries: Tensor, radius: Tensor) -> Tensor:
        inside = radius.unsqueeze(-1) * _ROUNDING
        blocks = zip(self._blocks(queries), self._blocks(inside), strict=True)
        return torch.cat([(self._distances(block) <= r).sum(-1) for block, r in blocks])

    def _distances(self, block: Tensor) -> Tensor:
        # the matrix-product shortcut of cdist cancels: it would lose near neighbours and make duplicates distinct
        return torch.cdist(block, self._points, compute_mode="donot_use_mm_for_euclid_dist")

    def _blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, max(1, _BLOCK_CELLS // len(self._points)))
