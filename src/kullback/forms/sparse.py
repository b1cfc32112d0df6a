"""The top of a distribution: a few classes by id, and a rest of which only the mass is known.

What truncation means is the form's `tail`, which has no default: it changes the number (docs/sparse.md).
"""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.dtypes import result_dtype
from kullback.core.readings import DrawnReading, TopKReading, Weights, leftover

from .finite import Array, FiniteForm, Logits, dense_tensor, floating_tensor, positive_number, readable, refuse_row

_CELLS = 1 << 21  # of float64 weights at once
Tail = Literal["bucket", "even", "renormalize"]
TAILS = ("bucket", "even", "renormalize")


@dataclass(frozen=True, eq=False)
class TopK(FiniteForm):
    """The log-probabilities of k classes of V, as teachers are cached: log p_i = log_probs_i at the class ids_i.

    With m = 1 - Σ_i p_i, the mass of the V-k classes that are not listed, `tail` says what they are:

        "bucket"       one event of mass m. The other side's classes that are not listed are taken together too, so a
                       divergence is Σ_i f(p_i, q_i) + f(m, 1 - Σ_i q_i): a lower bound of the dense one.
        "even"         m/(V-k) each.
        "renormalize"  0, and the listed ones are p_i / Σ p: the dense value of another distribution, with no bound.

    Between two buckets the classes that both list stand alone, and all others are one event. With k = V nothing is
    left out, and every tail is the dense row.

    Args:
        ids: (..., k), any integer dtype: different classes in [0, num_classes), in any order.
        log_probs: (..., k), any floating dtype; natural logarithms, -inf means "no mass". Their sum of probabilities
            may exceed 1 by the dtype's rounding, √eps, and m is then 0.
        num_classes: V.
        tail: see above; there is no default.
        temperature: w^(1/T), normalised over the V classes; a bucket, of which one class is not known, has none.
        validate: check the values (not inside `torch.compile` or `vmap`). Unchecked rows may hold NaN, as rows that a
            loss drops do, but ids are always in range.

    Gradients: to log_probs where they require them; those of m = 1 - Σ p pass through it unless m is 0.
    Raises:
        FormError: no tail, ids that are no integers, out of range or twice in a row, shapes that differ, k = 0, k > V,
            mass above 1, NaN, a temperature of a bucket.

    >>> from kullback import Probs, TopK, kl
    >>> teacher = TopK([[2, 0]], torch.log(torch.tensor([[0.5, 0.25]])), 4, tail="bucket")
    >>> kl(teacher, Probs([[0.2, 0.2, 0.5, 0.1]]))   # 0.25 log(0.25/0.2) + 0.25 log(0.25/0.3)
    tensor([0.0102])
    >>> TopK([[2, 0]], teacher.log_probs, 4, tail="even").probabilities()
    tensor([[0.2500, 0.1250, 0.5000, 0.1250]], dtype=torch.float64)
    """

    ids: Tensor | np.ndarray | Sequence[Any]
    log_probs: Array
    num_classes: int
    tail: Tail | None = field(default=None, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    validate: bool = field(default=True, kw_only=True)
    data: Tensor = field(init=False, repr=False)
    _left_out: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        ids, log_probs = _listed("TopK", self.ids, self.log_probs, self.num_classes)
        if self.tail not in TAILS:
            said = "no tail is given" if self.tail is None else f"tail is {self.tail!r}"
            raise FormError(
                f"TopK: {said}, but what the classes that are not listed have changes the number. Write tail='bucket' "
                "(one event: a lower bound), tail='even' (equal shares) or tail='renormalize' (nothing)."
            )
        temperature = positive_number("TopK", "temperature", self.temperature)
        if self.tail == "bucket" and temperature != 1.0:
            raise FormError(_no_temperature(temperature))
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "data", ids)
        object.__setattr__(self, "log_probs", log_probs)
        object.__setattr__(self, "num_classes", operator.index(self.num_classes))
        object.__setattr__(self, "temperature", temperature)
        if self.validate and readable(ids) and readable(log_probs):
            check_ids("TopK", ids, self.num_classes)
            _check_mass(log_probs, self.tail == "renormalize")

    @property
    def reading(self) -> TopKReading:
        assert self.tail is not None
        return TopKReading(self.num_classes, self.tail, self.temperature)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.data, self._log_probs

    @property
    def _log_probs(self) -> Tensor:
        assert isinstance(self.log_probs, Tensor)
        return self.log_probs

    @property
    def dtype(self) -> torch.dtype:
        """Of the log-probabilities."""
        return self._log_probs.dtype

    @property
    def left_out(self) -> Tensor:
        """The mass of the classes that are not listed, (...), float64, at temperature 1.

        1 - Σ p, or what `top_k` found when it made this form, which counts the others themselves.
        """
        if self._left_out is not None:
            return self._left_out
        if self.data.shape[-1] == self.num_classes:
            return torch.zeros_like(self._log_probs[..., 0], dtype=torch.float64)
        return leftover(self._log_probs.detach().double()).squeeze(-1)

    def with_tensors(self, *tensors: Tensor) -> "TopK":
        return replace(self, ids=tensors[0], log_probs=tensors[1], validate=False)

    def tempered(self, temperature: float) -> "TopK":
        if temperature == 1.0:
            return self
        if self.tail == "bucket":
            raise FormError(_no_temperature(temperature))
        return replace(self, temperature=self.temperature * temperature, validate=False)

    def __getitem__(self, index: Any) -> "TopK":
        found = super().__getitem__(index)
        if self._left_out is not None:
            object.__setattr__(found, "_left_out", self._left_out[index])
        return found


@dataclass(frozen=True, eq=False)
class Drawn:
    """Classes drawn from a teacher, with the teacher's own log-probabilities of them: a sampled teacher.

    Of it, KL(teacher‖student) can be estimated without bias, in value and in gradient, from the classes that were drawn
    alone: Σ_i c_i (log p_i - log q_i) / Σ_i c_i. It is no distribution, and no verb takes it: write
    `estimate.kl(Drawn(...), q)` to measure, and give it to a loss as `teacher=` to train. An estimate of one row may be
    negative. Of the reverse KL, Jensen-Shannon and all others there is no unbiased form.

    Args:
        ids: (..., n), any integer dtype: the classes drawn, in [0, num_classes).
        log_probs: (..., n), the teacher's log-probability of each; finite, since it was drawn.
        num_classes: V.
        counts: (..., n) integers: how often each was drawn, 0 for padding; None: once each.
        validate: check the values (not inside `torch.compile` or `vmap`).

    Raises: FormError: ids out of range, shapes that differ, n = 0, log-probabilities that are NaN, above 0 or -inf,
        counts that are negative or all 0.
    Source: arXiv 2503.16870 (sampling from a teacher's distribution).

    >>> from kullback import Drawn, Logits, estimate
    >>> drawn = Drawn([[0, 2]], [[-0.5, -2.0]], 3, counts=[[3, 1]])
    >>> estimate.kl(drawn, Logits([[1.0, 0.0, 0.0]])).raw   # (3 (0.0514) + 1 (-0.4486)) / 4
    tensor([-0.0736], dtype=torch.float64)
    """

    ids: Tensor | np.ndarray | Sequence[Any]
    log_probs: Array
    num_classes: int
    counts: Tensor | np.ndarray | Sequence[Any] | None = None
    validate: bool = True

    def __post_init__(self) -> None:
        ids, log_probs = _listed("Drawn", self.ids, self.log_probs, self.num_classes, most=math.inf, letter="n")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "log_probs", log_probs)
        object.__setattr__(self, "num_classes", operator.index(self.num_classes))
        counts = None
        if self.counts is not None:
            counts = _integers("Drawn", "counts", self.counts)
            if counts.shape != ids.shape:
                raise FormError(
                    f"Drawn: counts have shape {tuple(counts.shape)} but ids {tuple(ids.shape)}: there is one for each."
                )
            object.__setattr__(self, "counts", counts)
        if not self.validate or not readable(ids) or not readable(log_probs):
            return
        _check_range("Drawn", ids, self.num_classes)
        if counts is not None:
            refuse_row(counts < 0, "Drawn", lambda at: "has a negative count", "how often each class was drawn")
            refuse_row(
                (counts.sum(-1, keepdim=True) == 0),
                "Drawn",
                lambda at: "has no draws: its counts are all 0",
                "at least one draw a row (a row that a loss drops may hold any)",
            )
        seen = log_probs.detach()
        counted = torch.ones_like(ids, dtype=torch.bool) if counts is None else counts > 0
        refuse_row(
            counted & ~((seen <= math.sqrt(torch.finfo(seen.dtype).eps)) & (seen > -math.inf)),
            "Drawn",
            lambda at: "holds a log-probability that is NaN, above 0, or -inf, which is never drawn",
            "the teacher's log_softmax at the ids",
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """ids, log-probabilities, and counts; all (..., n)."""
        ids, log_probs = self.ids, self.log_probs
        assert isinstance(ids, Tensor)
        assert isinstance(log_probs, Tensor)
        return ids, log_probs, torch.ones_like(ids) if self.counts is None else torch.as_tensor(self.counts)

    @property
    def batch_shape(self) -> torch.Size:
        """One row of draws for each entry of this shape."""
        return self.tensors[0].shape[:-1]

    @property
    def device(self) -> torch.device:
        """Of the ids."""
        return self.tensors[0].device

    def to(self, *args: Any, **kwargs: Any) -> "Drawn":
        """The tensors moved or cast as `Tensor.to` does it; integers keep their dtype."""
        ids, log_probs, _ = self.tensors
        device = ids.new_empty(0).to(*args, **kwargs).device
        counts = None if self.counts is None else torch.as_tensor(self.counts).to(device)
        return replace(self, ids=ids.to(device), log_probs=log_probs.to(*args, **kwargs), counts=counts, validate=False)

    def __getitem__(self, index: Any) -> "Drawn":
        """Rows: an index into the batch shape."""
        ids, log_probs, _ = self.tensors
        cut = (*index, slice(None)) if isinstance(index, tuple) and Ellipsis in index else index
        counts = None if self.counts is None else torch.as_tensor(self.counts)[cut]
        return replace(self, ids=ids[cut], log_probs=log_probs[cut], counts=counts, validate=False)


class Draws(FiniteForm):
    """A `Drawn` as losses take it: how often each class was drawn, as a distribution, with which a cross-entropy less
    `surprise` is the estimate.
    """

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        ids, self._log_probs, self._counts = drawn.tensors
        self.data, self.num_classes = ids, drawn.num_classes

    @property
    def surprise(self) -> Tensor:
        """-Σ count · log p / Σ count, (...), float64, without a gradient."""
        # a class that was not drawn has any log-probability: padding
        counted = torch.where(self._counts > 0, self._counts * self._log_probs.detach().double(), 0.0)
        return -counted.sum(-1) / self._counts.sum(-1)

    @property
    def reading(self) -> DrawnReading:
        return DrawnReading(self.num_classes)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.data, self._counts

    def detach(self) -> "Draws":
        return self

    def tempered(self, temperature: float) -> "Draws":
        if temperature == 1.0:
            return self
        raise FormError(
            f"Drawn: what was drawn from a teacher has no other temperature, and not {temperature:g}. Draw from the "
            "teacher at that temperature (draw(logits, n, temperature=...)), and give teacher_temperature=1 to the "
            "loss (losses.Distillation has one)."
        )


def top_k(logits: Tensor | FiniteForm, k: int, *, tail: Tail, temperature: float = 1.0) -> TopK:
    """The k likeliest classes of dense scores, as a `TopK`; its `left_out` says what mass they leave.

    Args:
        logits: (..., V) scores, or a form.
        k: how many, from 1 to V.
        tail: what the form says of the others.
        temperature: the scores are divided by it first: this is the temperature at which the teacher is kept, and a
            loss is told it by `teacher_temperature=1`.

    Returns: TopK of log-probabilities in float64 if the scores are and float32 otherwise, likeliest first, without a
        gradient. `left_out`, (...) in float64, is the sum of the others, not 1 less the sum of the k.

    >>> from kullback import top_k
    >>> kept = top_k(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 2, tail="bucket")
    >>> kept.ids, kept.left_out
    (tensor([[1, 3]]), tensor([0.1192], dtype=torch.float64))
    """
    form = _dense("top_k", logits, temperature)
    k = _count("top_k", "k", k, form.num_classes)
    blocks = []
    for w, log_w in weights_by_rows(form):
        log_probs, ids = log_w.topk(k, dim=-1)
        blocks.append((ids, log_probs.to(result_dtype(form.dtype)), w.scatter(-1, ids, 0.0).sum(-1)))
    ids, log_probs, left = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    shape = (*form.batch_shape, k)
    kept = TopK(ids.reshape(shape), log_probs.reshape(shape), form.num_classes, tail=tail, validate=False)
    object.__setattr__(kept, "_left_out", left.reshape(form.batch_shape))
    return kept


def draw(
    logits: Tensor | FiniteForm, n: int, *, generator: torch.Generator | None = None, temperature: float = 1.0
) -> Drawn:
    """n classes of every row drawn from dense scores, with replacement, as `Drawn`: each class once, with its count.

    Args:
        logits: (..., V) scores, or a form.
        n: draws a row.
        generator: the source of randomness, which makes the call repeatable.
        temperature: the scores are divided by it first: draws come from, and log-probabilities are of, the teacher at
            this temperature.

    Returns: Drawn (..., m), m <= n: as many places as the row with the most different classes needs; elsewhere count 0.

    >>> from kullback import draw
    >>> drawn = draw(torch.tensor([[0.0, 3.0]]), 100, generator=torch.Generator().manual_seed(0))
    >>> drawn.counts
    tensor([[ 5, 95]])
    """
    form = _dense("draw", logits, temperature)
    n = _count("draw", "n", n, math.inf)
    blocks = []
    for w, log_w in weights_by_rows(form):
        if bool(w.isnan().any()):
            raise FormError("draw: a row holds NaN, from which nothing is drawn. Drop such rows first.")
        found = torch.multinomial(w, n, replacement=True, generator=generator) if len(w) else w.new_zeros(0, n)
        drawn = found.long().sort(-1).values
        blocks.append((drawn, log_w.gather(-1, drawn).to(result_dtype(form.dtype))))
    drawn, log_probs = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    place, counts = _merged(drawn)
    shape = (*form.batch_shape, place.shape[-1])
    ids, log_probs, counts = (x.reshape(shape) for x in (drawn.gather(-1, place), log_probs.gather(-1, place), counts))
    return Drawn(ids, log_probs, form.num_classes, counts=counts, validate=False)


def weights_by_rows(form: FiniteForm) -> Iterator[Weights]:
    """The weights of a form, (n, V) in float64, some rows at a time, at least once."""
    dims, rows = form.reading.event_dims, form.batch_shape.numel()
    data = [
        x if d is None else x.detach().reshape(rows, *x.shape[x.dim() - d :])
        for x, d in zip(form.tensors, dims, strict=True)
    ]
    step = max(1, _CELLS // form.num_classes)
    with torch.no_grad():
        for start in range(0, max(rows, 1), step):
            cut = slice(start, start + step)
            yield form.reading.weights(tuple(x if d is None else x[cut] for x, d in zip(data, dims, strict=True)))


def _merged(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """(a place of each different value in rows of (N, n), how often it stands there), padded by place 0, 0 times."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    value = first.long().cumsum(-1) - 1
    most = int(value.max()) + 1 if value.numel() else 1
    counts = torch.zeros_like(ordered).scatter_add(-1, value, torch.ones_like(value))[:, :most]
    places = torch.arange(ordered.shape[-1], device=ordered.device).expand_as(ordered)
    return torch.zeros_like(ordered).scatter(-1, value, places)[:, :most], counts


def _dense(owner: str, logits: Any, temperature: float) -> FiniteForm:
    if not isinstance(logits, FiniteForm):
        logits = Logits(floating_tensor(owner, logits))
    form: FiniteForm = logits.detach()
    return form.tempered(positive_number(owner, "temperature", temperature))


def _count(owner: str, name: str, value: Any, most: float) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if not 1 <= whole <= most or isinstance(value, bool):
        upper = f" to {most}" if most < math.inf else ""
        raise FormError(f"{owner}: {name} is {value!r}; write an integer from 1{upper}.")
    return whole


# ---------------------------------------------------------------- checks


def _no_temperature(temperature: float) -> str:
    return (
        f"TopK: a bucket has no temperature {temperature:g}: what its classes would have is not known. Write "
        "tail='even', or keep the teacher at that temperature (top_k(logits, k, temperature=...)) and give "
        "teacher_temperature=1 to the loss."
    )


def _integers(owner: str, name: str, x: Any) -> Tensor:
    data = dense_tensor(owner, name, x)
    if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
        raise FormError(f"{owner}: {name} have dtype {data.dtype}, but they are integers. Write {name}.long().")
    return data.long() if data.dtype in (torch.uint16, torch.uint32, torch.uint64) else data


def _listed(
    owner: str, ids: Any, log_probs: Any, num_classes: Any, most: float | None = None, letter: str = "k"
) -> tuple[Tensor, Tensor]:
    """Both tensors, (..., k) of one shape, k from 1 to `most` or V."""
    classes = _integers(owner, "ids", ids)
    logs = dense_tensor(owner, "log_probs", log_probs)
    if not logs.is_floating_point():
        if isinstance(log_probs, Tensor) or logs.is_complex() or logs.dtype == torch.bool:
            raise FormError(
                f"{owner}: log_probs have dtype {logs.dtype}, but they are floating numbers. Write log_probs.float()."
            )
        logs = logs.to(torch.get_default_dtype())
    try:
        v = operator.index(num_classes)
    except TypeError:
        raise FormError(f"{owner}: num_classes is {num_classes!r}; write the integer number of classes.") from None
    if v < 1:
        raise FormError(f"{owner}: num_classes is {v}, but a distribution needs at least one class.")
    if classes.shape != logs.shape:
        raise FormError(
            f"{owner}: ids have shape {tuple(classes.shape)} but log_probs {tuple(logs.shape)}: both hold "
            f"(..., {letter}), one log-probability for each id. Write ids.expand(log_probs.shape) if rows share them."
        )
    if classes.dim() == 0 or classes.shape[-1] == 0:
        raise FormError(f"{owner}: ids have shape {tuple(classes.shape)}; list at least one class (last axis).")
    if classes.device != logs.device:
        raise FormError(
            f"{owner}: ids are on {classes.device} but log_probs on {logs.device}. Write ids.to({str(logs.device)!r})."
        )
    if classes.shape[-1] > (v if most is None else most):
        raise FormError(
            f"{owner}: {letter}={classes.shape[-1]} classes are listed, but there are only num_classes={v}. The class "
            "axis is the last; num_classes is V, not k."
        )
    return classes, logs


def _check_range(owner: str, ids: Tensor, num_classes: int) -> None:
    outside = (ids < 0) | (ids >= num_classes)
    refuse_row(
        outside,
        owner,
        lambda at: (
            f"holds the id {ids[at][outside[at]][0].item()}, but num_classes={num_classes} allows 0 to "
            f"{num_classes - 1}"
        ),
        "ids of the same vocabulary; pad with an id that is not listed and log-probability -inf",
    )


def check_ids(owner: str, ids: Tensor, num_classes: int) -> None:
    """An error for the first row with an id out of range, or twice."""
    _check_range(owner, ids, num_classes)
    ordered = ids.sort(-1).values
    twice = ordered[..., 1:] == ordered[..., :-1]
    refuse_row(
        twice,
        owner,
        lambda at: f"holds the id {ordered[at][1:][twice[at]][0].item()} twice",
        "each class once, with its log-probability (pad with ids that are not listed and log-probability -inf)",
    )


def _check_mass(log_probs: Tensor, of_itself: bool) -> None:
    mass = torch.exp(log_probs.detach().double()).sum(-1)
    tolerance = math.sqrt(torch.finfo(log_probs.dtype).eps)
    refuse_row(
        mass.isnan().unsqueeze(-1),
        "TopK",
        lambda at: "holds NaN, which has no distribution",
        "validate=False if the mask of a loss drops such rows",
    )
    refuse_row(
        (mass > 1.0 + tolerance).unsqueeze(-1),
        "TopK",
        lambda at: f"has the mass {mass[at].item():.10g}, above 1 (tolerance {tolerance:.1g} in {log_probs.dtype})",
        "log_softmax over all V classes before the k are taken; scores alone do not say how much is left out",
    )
    if of_itself:
        refuse_row(
            (mass == 0).unsqueeze(-1),
            "TopK",
            lambda at: "has no mass to renormalize",
            "tail='even' or 'bucket', which give all of it to the others",
        )


# what `torch.load(..., weights_only=True)` may build
torch.serialization.add_safe_globals([TopK, Drawn])
