"""Rows that belong together: counts of each cluster, so that whole clusters can be permuted."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .bins import OTHER, Bins, Categories
from .counting import Tally, tally
from .engines import Source
from .pairing import Paired
from .statistics import Floats

MOST = 200_000  # clusters of a side


@dataclass(frozen=True)
class Clustered:
    """Counts of the cells of every cluster of both sides."""

    left: Tally
    right: Tally
    bins: Mapping[str, Bins]

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.left.keys), len(self.right.keys)

    def counts(self, name: str, paired: Paired) -> tuple[Floats, Floats]:
        """Over the cells of the comparison, (clusters, B) for each side."""
        x, y = (self._over(side.cells[name], name, paired) for side in (self.left, self.right))
        return x, y

    def _over(self, cells: "np.typing.NDArray[np.int64]", name: str, paired: Paired) -> Floats:
        bins = self.bins[name]
        if not isinstance(bins, Categories):
            return np.stack([cells[:, list(group)].sum(1) for group in paired.groups], axis=1).astype(np.float64)
        place = {label: i for i, label in enumerate(bins.names)}
        named = [label for label in paired.labels if label in place]
        columns = {label: cells[:, place[label]] for label in named}
        columns["null"] = cells[:, -1]
        columns[OTHER] = cells[:, :-1].sum(1) - sum(columns[label] for label in named)
        return np.stack([columns[label] for label in paired.labels], axis=1).astype(np.float64)


def clustered(left: Source, right: Source, column: str, bins: Mapping[str, Bins]) -> Clustered:
    """Count both sides by cluster. Raises: BadInput: too many clusters, or no such column."""
    left_tally, right_tally = (tally(side, bins, side.key(column, "cluster"), MOST) for side in (left, right))
    return Clustered(left_tally, right_tally, bins)
