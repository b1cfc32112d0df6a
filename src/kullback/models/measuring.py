"""A batch's rows of all sides, scored a chunk at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kullback.forms.finite import FiniteForm
from kullback.forms.linear import LinearLogits

from .scores import Scores, join, score
from .text import Batch

MEMORY = {"cpu": 128 << 20}  # bytes of one side's scores, on this kind of device
ELSEWHERE = 256 << 20
ROWS = (64, 512)  # least, most in a chunk


@dataclass(frozen=True)
class Rows:
    """One side's distributions of a batch's scored tokens, and what is known of them beside.

    form: `LinearLogits` or `Logits`; of a stored reference also a `TopK` whose rest is one cell.
    known: columns of `Scores` that replace those made of `form`, where it is only a part of what there was.
    """

    form: FiniteForm
    known: Mapping[str, np.ndarray[Any, Any]] | None = None

    @property
    def num_classes(self) -> int:
        return self.form.num_classes

    @property
    def device(self) -> torch.device:
        return self.form.data.device

    @property
    def row_bytes(self) -> int:
        """What a row's scores take."""
        return self.num_classes * self.form.data.element_size()

    def part(self, rows: slice) -> FiniteForm:
        """Some of them, as scores that exist."""
        part = self.form[rows]
        return part.logits() if isinstance(part, LinearLogits) else part


class NotFinite(Exception):
    """A row that is no distribution: whose (-1: the reference's), and which."""

    def __init__(self, whose: int, row: int) -> None:
        super().__init__(whose, row)
        self.whose, self.row = whose, row


@torch.no_grad()
def measure(batch: Batch, reference: Rows, candidates: list[Rows]) -> list[Scores]:
    """Every candidate against the reference at the batch's scored tokens.

    The scores (rows, V) exist for one chunk of rows at a time, the reference's once for all candidates. All sides are
    cut into the same chunks: equal models give equal bits.

    Raises: NotFinite.
    """
    labels, tokens = batch.labels(), batch.tokens().to(reference.device)
    parts: list[list[Scores]] = [[] for _ in candidates]
    for rows in chunks(reference, len(tokens)):
        p = reference.part(rows)
        where = {name: x[rows] for name, x in labels.items()}
        for i, candidate in enumerate(candidates):
            q = candidate.part(rows)
            found = score(p, q, tokens[rows], document=where["document"], position=where["position"])
            if not (ok := ~np.isnan(found.kl)).all():
                row = int(np.flatnonzero(~ok)[0])
                raise NotFinite(-1 if np.isnan(found.entropy[row]) else i, rows.start + row)
            parts[i].append(found)
    joined = [join(each) for each in parts]
    known = reference.known
    return joined if known is None else [replace(each, **known) for each in joined]


def chunks(rows: Rows, count: int) -> Iterator[slice]:
    """Of `count` rows, as many at a time as there is memory for their scores."""
    step = min(max(MEMORY.get(rows.device.type, ELSEWHERE) // rows.row_bytes, ROWS[0]), ROWS[1])
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
