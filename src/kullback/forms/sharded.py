"""Distributions whose classes are split over the ranks of a process group."""

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kullback._errors import FormError
from kullback.core.sharded import ShardedReading, added, replicated

from .finite import FiniteForm, Labels, Logits, LogProbs, Probs, check_rows_sum_to_one, is_dtensor, readable
from .linear import LinearLogits
from .sparse import Draws, TopK

_SPLIT = (Logits, LogProbs, Probs, LinearLogits)
_BY_ID = (Labels, TopK, Draws)


@dataclass(frozen=True, eq=False)
class Sharded(FiniteForm):
    """This rank's columns [start, start + width) of distributions over `num_classes` = V classes.

        p_v = exp(x_v / T) / Σ_ranks Σ_u exp(x_u / T)        for Logits: the normaliser is that of all ranks

    Every rank of the group holds the same rows, asks for the same divergence, and gets the same values, bit for bit.
    The gradient to its own columns is that of the one loss that all ranks computed; it is not multiplied by their
    number. Beside a Sharded form stands another of the same columns, or whole, with classes by global id, `Labels` or
    `TopK` (losses: or a `Drawn` teacher).

    Args:
        form: `Logits`, `LogProbs(..., validate=False)`, `Probs(..., validate=False)` or `LinearLogits` (rows of the
            weight) of the columns here: (..., width). Shards may differ in width, and have none: (..., 0).
        group: a `torch.distributed` process group; None is the default group.
        num_classes: V, of all ranks together.
        start: the number of classes on the ranks before.
        validate: for `LogProbs` and `Probs`, check that rows sum to one over all ranks: an all-reduce of one number
            a row, when the form is made.

    Communication: three all-reduces forward, of (2, N), (2, N) and (3, N) float64, and none backward; one where no side
        is logits; a fourth of (N,) for Rényi's divergence. Whether the shards make up the vocabulary is told by two
        numbers in the last one. As with any collective, an error on one rank alone leaves the others waiting.
    Gradients: to the tensors of the form, once; a second derivative is refused. The hidden states of `LinearLogits`,
        which every rank holds whole, get theirs from all ranks: one all-reduce of their shape in the backward pass.
        `LinearLogits` goes by chunks of rows, with three all-reduces each; a verb's backward pass makes its scores, and
        so these, once more, a loss's does not.
    Raises: FormError: no process group, or one without this rank; columns outside of the vocabulary; shards that do not
        make it up (on every rank, at the first comparison).

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> kl(Labels([2], 3), Sharded(Logits([[0.0, 1.0, 2.0]]), num_classes=3, start=0))
    tensor([0.4076])
    >>> dist.destroy_process_group()
    """

    form: FiniteForm
    group: Any = None
    num_classes: int = field(kw_only=True)
    start: int = field(kw_only=True)
    validate: bool = field(default=True, kw_only=True)
    _made: bool = field(default=False, kw_only=True, repr=False)  # of another Sharded, whose tensors these were
    _reading: ShardedReading = field(init=False, repr=False)

    def __post_init__(self) -> None:
        form = self.form
        if not isinstance(form, _SPLIT):
            raise FormError(_no_shard(form))
        if _of_dtensors(form):
            raise FormError(
                "Sharded: the form holds a DTensor, which says itself how it is split. "
                f"Write {type(form).__name__}(x) without Sharded."
            )
        name = _name_of(self.group)
        v, start = _integer("num_classes", self.num_classes), _integer("start", self.start)
        width = form.num_classes
        if start + width > v:
            raise FormError(
                f"Sharded: columns {start} to {start + width} do not lie in num_classes={v}. Write num_classes=V, the "
                "classes of all ranks together, and start= the number of classes on the ranks before."
            )
        if isinstance(form, LinearLogits) and not self._made and form.data.requires_grad:
            hidden, *parameters = form.tensors
            object.__setattr__(self, "form", form.with_tensors(replicated(hidden, name), *parameters))
        object.__setattr__(self, "num_classes", v)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "_reading", ShardedReading(form.reading, name, v, start, width))
        if self.validate and isinstance(form, LogProbs | Probs) and readable(form.data):
            seen = form.data.detach().double()
            log = isinstance(form, LogProbs)
            sums = added((torch.exp(seen) if log else seen).sum(-1), name)
            check_rows_sum_to_one("Sharded", form.data, sums, "over all ranks sums", "Logits(x) if these are scores")

    @property
    def reading(self) -> ShardedReading:
        return self._reading

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The first tensor of the form, of the columns here."""
        return self.form.data

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.form.tensors

    @property
    def batch_shape(self) -> torch.Size:
        return self.form.batch_shape

    def with_tensors(self, *tensors: Tensor) -> "Sharded":
        return self._of(self.form.with_tensors(*tensors))

    def tempered(self, temperature: float) -> "Sharded":
        return self if temperature == 1.0 else self._of(self.form.tempered(temperature))

    def _of(self, form: FiniteForm) -> "Sharded":
        return replace(self, form=form, validate=False, _made=True)


def check_split(verb: str, p: FiniteForm, q: FiniteForm) -> None:
    """An error unless both forms hold the same columns of every row, or one is sharded and the other says its classes
    by global id.
    """
    if isinstance(p, Sharded) and isinstance(q, Sharded):
        if p.reading.place != q.reading.place:
            raise FormError(
                f"{verb}: p holds {_place(p)} but q holds {_place(q)}. Both hold the same columns of the same group."
            )
    elif isinstance(p, Sharded) or isinstance(q, Sharded):
        shard, name, other = (p, "q", q) if isinstance(p, Sharded) else (q, "p", p)
        assert isinstance(shard, Sharded)
        if not isinstance(other, _BY_ID):
            raise FormError(f"{verb}: " + _mixed(shard, name, other))
    elif _of_dtensors(p) != _of_dtensors(q):
        name, plain, whole = ("q", q, p) if _of_dtensors(p) else ("p", p, q)
        kind = type(plain).__name__
        mesh = "x.device_mesh" if isinstance(plain, Labels) else f"{'p' if name == 'q' else 'q'}.device_mesh"
        raise FormError(
            f"{verb}: {name} is {kind} of a plain tensor, but the other side is a DTensor placed "
            f"{whole.data.placements}. Write {kind}(DTensor.from_local(x, {mesh}, placements)) if x is what this rank "  # type: ignore[attr-defined]
            "holds, or distribute_tensor(x, mesh, placements) if every rank holds the whole; class labels are "
            "replicated where the class axis is split."
        )


def _mixed(shard: Sharded, name: str, other: FiniteForm) -> str:
    start, width, v = shard.start, shard.form.num_classes, shard.num_classes
    kind = type(other).__name__
    said = f"{name} is {kind} of V={other.num_classes}, beside a Sharded form of {_place(shard)}. "
    whole = f"num_classes={v}, start={start})"
    if other.num_classes == width and width != v:
        return said + f"If these are the same columns, write Sharded({name}, group, {whole}."
    if other.num_classes == v:
        return said + f"Write Sharded({kind}({name}.data[..., {start}:{start + width}]), group, {whole}."
    return said + "Both sides hold the same columns of one vocabulary."


def _place(form: Sharded) -> str:
    r = form.reading
    return f"columns {r.start} to {r.start + r.width} of {r.num_classes} in group {r.group!r}"


def _of_dtensors(form: FiniteForm) -> bool:
    return any(is_dtensor(x) for x in form.tensors)


def _no_shard(form: Any) -> str:
    if isinstance(form, Sharded):
        return "Sharded: form is Sharded already. Write the form that it holds."
    if isinstance(form, _BY_ID):
        kind = type(form).__name__
        return f"Sharded: {kind} says its classes by global id, and is not split. Write it beside a Sharded form."
    if isinstance(form, Tensor):
        return "Sharded: form is a bare Tensor, which does not say what it holds. Write Sharded(Logits(x), ...)."
    if isinstance(form, FiniteForm):
        return f"Sharded: {type(form).__name__} cannot be split. Write it whole beside a Sharded form."
    return f"Sharded: form is a {type(form).__name__}. Write Sharded(Logits(x), ...)."


def _name_of(group: Any) -> str:
    if not (dist.is_available() and dist.is_initialized()):
        raise FormError(
            "Sharded: torch.distributed is not initialised, so there are no ranks. Write "
            "torch.distributed.init_process_group(...) first, or Logits(x) if x holds all classes."
        )
    found = dist.group.WORLD if group is None else group
    if isinstance(found, dist.ProcessGroup) and dist.get_rank(found) >= 0:
        return str(found.group_name)
    if isinstance(found, dist.ProcessGroup) or found is dist.GroupMember.NON_GROUP_MEMBER:
        raise FormError(
            f"Sharded: this rank, {dist.get_rank()}, is not in the group. Write the group that it is in: "
            "torch.distributed.new_group gives every rank one, also those that are not members."
        )
    if hasattr(group, "get_group"):
        raise FormError("Sharded: group is a device mesh. Write group=mesh.get_group(name of the mesh dimension).")
    raise FormError(f"Sharded: group is a {type(group).__name__}, not a process group. Write group=None for all ranks.")


def _integer(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < (1 if name == "num_classes" else 0):
        raise FormError(f"Sharded: {name} is {value!r}, but it counts classes: write an integer.")
    return number


# what `torch.load(..., weights_only=True)` may build
torch.serialization.add_safe_globals([Sharded, ShardedReading])
