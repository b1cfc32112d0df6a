"""DTensors: what every rank holds of them, and how the rows that come of it are one DTensor again.

A mesh dimension that splits the class axis makes a sharded reading; those that split batch axes leave rows to each
rank. The result has the batch placements, and is replicated over the mesh dimension that splits the classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.readings import (
    DrawnReading,
    LabelsReading,
    LogitsReading,
    LogProbsReading,
    ProbsReading,
    Reading,
    Side,
    TopKReading,
)
from kullback.core.sharded import ShardedReading
from kullback.forms.finite import is_dtensor

Whole = Callable[[Tensor], Tensor]
COLUMNS = (LogitsReading, LogProbsReading, ProbsReading)
BY_ID = (LabelsReading, TopKReading, DrawnReading)


def local(p: Side, q: Side) -> tuple[Side, Side, Whole | None]:
    """What this rank holds of both sides, and what makes a DTensor of its rows; None where there is none."""
    if not any(is_dtensor(x) for x in (*p.data, *q.data)):
        return p, q, None
    (left, batch_p), (right, batch_q) = _here("p", p), _here("q", q)
    x, y = p.data[0], q.data[0]
    if x.device_mesh != y.device_mesh:  # type: ignore[attr-defined]
        raise FormError("p and q are DTensors of different device meshes. Write q.redistribute(p.device_mesh, ...).")
    splits = [side.reading for side in (left, right) if isinstance(side.reading, ShardedReading)]
    by_id = any(isinstance(side.reading, BY_ID) for side in (left, right))
    if batch_p != batch_q or len({s.place for s in splits}) > 1 or (len(splits) == 1 and not by_id):
        raise FormError(
            f"p is a DTensor placed {x.placements} but q is placed {y.placements}; they lie alike, "  # type: ignore[attr-defined]
            "except that class labels are replicated where the class axis is split. "
            "Write q.redistribute(p.device_mesh, p.placements)."
        )
    return left, right, _whole(x, batch_p, p.batch_shape)


def _whole(x: Any, placements: Sequence[Any], shape: Sequence[int]) -> Whole:
    strides = torch.empty(shape, device="meta").stride()

    def whole(rows: Tensor) -> Tensor:
        made: Tensor = type(x).from_local(
            rows, x.device_mesh, placements, run_check=False, shape=tuple(shape), stride=strides
        )
        return made

    return whole


def _here(name: str, side: Side) -> tuple[Side, tuple[Any, ...]]:
    """This rank's part, and where the rows lie, one placement a mesh dimension."""
    if not isinstance(side.reading, COLUMNS + BY_ID):
        kind = type(side.reading).__name__.removesuffix("Reading")
        raise FormError(
            f"{name} holds a DTensor, which {kind} does not take. Write Logits, LogProbs, Probs, Labels or TopK of it, "
            "or give every rank its own rows: x.to_local()."
        )
    rows, split = _placed(name, side.data[0], side.reading)
    for x in side.data[1:]:
        if _placed(name, x, side.reading) != (rows, split):
            raise FormError(
                f"{name} holds DTensors that are placed differently. Write x.redistribute(mesh, placements)."
            )
    data = tuple(x.to_local() for x in side.data)  # type: ignore[attr-defined]
    return Side(side.reading if split is None else _sharded(side.reading, side.data[0], data[0], split), data), rows


def _placed(name: str, x: Any, reading: Reading) -> tuple[tuple[Any, ...], int | None]:
    """The placements of the rows, and the mesh dimension that splits the class axis."""
    from torch.distributed.tensor import Replicate, Shard

    if not is_dtensor(x):
        raise FormError(f"{name} holds a DTensor beside a plain tensor. Write distribute_tensor(x, mesh, placements).")
    dims = x.dim() - (reading.event_dims[0] or 0)
    rows: list[Any] = []
    split = None
    for k, placement in enumerate(x.placements):
        if type(placement) is Shard and placement.dim % x.dim() < dims:
            rows.append(Shard(placement.dim % x.dim()))
        elif type(placement) is Shard and split is None and isinstance(reading, COLUMNS):
            split = k
            rows.append(Replicate())
        elif type(placement) is Replicate:
            rows.append(placement)
        else:
            twice = type(placement) is Shard and isinstance(reading, COLUMNS)
            raise FormError(
                f"{name} is a DTensor placed {x.placements}"
                + (", which splits the class axis twice." if twice else f"; {placement} is not taken.")
                + " Write x.redistribute(placements=[...]) with Replicate() or Shard(axis), the class axis once."
            )
    return tuple(rows), split


def _sharded(reading: Reading, x: Any, here: Tensor, dim: int) -> ShardedReading:
    mesh, v = x.device_mesh, x.shape[-1]
    share = -(-v // mesh.size(dim))  # as torch.chunk cuts
    start = min(mesh.get_local_rank(dim) * share, v)
    return ShardedReading(reading, mesh.get_group(dim).group_name, v, start, here.shape[-1])
