"""Where the joint drift of several columns comes from: the chain rule.

KL(p(a, b, c)‖q(a, b, c)) = KL(a) + KL(b | a) + KL(c | a, b): what the first shows alone, what the second adds given the
first, and so on. The parts add up to the whole, cell by cell.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kullback._errors import BadInput
from kullback.forms.finite import Probs
from kullback.verbs import kl

from .bins import Bins
from .counting import code
from .engines import Source, collect, speaking
from .profiles import design
from .statistics import BLOCK, DRAWS, Floats, mid_p, relabelled_rows, smoothed

JOINT_BINS = 5
MOST_CELLS = 20_000


@dataclass(frozen=True)
class Part:
    """One column's part of the joint KL, given the columns before it.

    Args:
        value: in nats, less what chance alone would show.  raw: before that.
        p_value: of the part, by permutation of rows.
    """

    column: str
    given: tuple[str, ...]
    value: float
    raw: float
    p_value: float


@dataclass(frozen=True)
class Joint:
    """KL(reference‖current) of several columns together, in nats, and its parts, which add up to it."""

    columns: tuple[str, ...]
    cells: int
    value: float
    raw: float
    p_value: float
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def joint(left: Source, right: Source, columns: Sequence[str], *, seed: int = 0) -> Joint:
    """Split the joint KL of the columns, in this order. Raises: BadInput: an unknown column, too many cells."""
    names = list(dict.fromkeys(columns))
    for side in (left, right):
        for name in names:
            if name not in side.columns:
                raise BadInput(f"{side.label}: there is no column {name!r} (--joint)")
    some = Source(left.frame, {n: left.columns[n] for n in names}, {}, left.engine, left.label)
    bins, _ = design(some, bins=JOINT_BINS, categories=JOINT_BINS)
    shape = tuple(len(bins[name].labels) for name in names)
    if math.prod(shape) > 10**9:
        raise BadInput(f"--joint: {math.prod(shape):,} cells; name fewer columns")
    x, y = (_cells(side, names, bins) for side in (left, right))
    codes = sorted(x.keys() | y.keys())
    if len(codes) > MOST_CELLS:
        raise BadInput(
            f"--joint: {len(codes):,} joint cells are in use, and {MOST_CELLS:,} is the most; name fewer columns"
        )
    if len(codes) < 2:
        raise BadInput("--joint: one joint cell holds every row")
    a, b = (np.array([float(side.get(code, 0)) for code in codes]) for side in (x, y))
    # cells are sorted, so that those which share their first k coordinates lie side by side: where each such run starts
    table = np.array(codes)
    new = np.any(np.cumsum(np.diff(table, axis=0) != 0, axis=1)[:, :, None] > 0, axis=2)
    starts = [np.concatenate([[0], 1 + np.flatnonzero(new[:, k])]) for k in range(len(names))]
    rng = np.random.default_rng([seed, zlib.crc32("\0".join(names).encode())])
    null = relabelled_rows(a, b, min(DRAWS, max(199, BLOCK * 4 // len(codes))), rng)
    observed = _chain(a, b, starts)
    by_chance = _chain(*null, starts)
    p_values = [mid_p(by_chance[:, k], observed[0, k]) for k in range(len(names))]
    parts = tuple(
        Part(name, tuple(names[:k]), float(observed[0, k] - by_chance[:, k].mean()), float(observed[0, k]), p_values[k])
        for k, name in enumerate(names)
    )
    total = by_chance.sum(1)
    return Joint(
        tuple(names),
        len(codes),
        float(observed.sum() - total.mean()),
        float(observed.sum()),
        mid_p(total, float(observed.sum())),
        parts,
    )


def _chain(x: Floats, y: Floats, starts: Sequence[Any]) -> Floats:
    """KL of the first k columns together, less that of the first k-1: (draws, columns). Jeffreys' ½ on joint cells."""
    p, q = (smoothed(np.atleast_2d(side)) for side in (x, y))
    sums = [[torch.from_numpy(np.add.reduceat(side, start, axis=1)) for side in (p, q)] for start in starts]
    values = np.stack([kl(*map(Probs, pair)).numpy() for pair in sums], axis=1)
    return np.diff(values, axis=1, prepend=0.0)


def _cells(source: Source, names: Sequence[str], bins: Mapping[str, Bins]) -> dict[tuple[int, ...], int]:
    """Rows of each joint cell that is in use, by the engine's GROUP BY."""
    import narwhals as nw

    with speaking(source.label):
        codes = [code(source, source.columns[n], bins[n]).alias(f"k{i}") for i, n in enumerate(names)]
        keys = [f"k{i}" for i in range(len(names))]
        groups = source.frame.select(*codes).group_by(*keys).agg(nw.len().alias("n"))
        table = collect(groups.head(MOST_CELLS + 1))
    return {tuple(map(int, key)): int(n) for *key, n in zip(*(table[k] for k in keys), table["n"], strict=True)}
