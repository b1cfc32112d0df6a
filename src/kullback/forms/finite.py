"""Finite distributions: what a tensor of V columns, or of class indices, means.

A form is frozen and holds its tensor without a copy. Values are checked once, when it is made, so that a verb need
not check again; the checks read the data, so they are skipped inside `torch.compile` and `torch.func.vmap`, and
`validate=False` skips them on purpose (on a GPU each check waits for the device).
"""

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.core.readings import LabelsReading, LogitsReading, LogProbsReading, ProbsReading, Reading, Side

Array: TypeAlias = Tensor | np.ndarray | Sequence[Any] | float
Form = TypeVar("Form", bound="FiniteForm")


class FiniteForm:
    """A batch of distributions over V classes: tensors, and how to read them.

    A form of one's own sets `data` (the first tensor, which has the rows), `num_classes` and `reading`, and, if it
    holds more than one tensor, overrides `tensors` and `with_tensors`.
    """

    data: Tensor
    num_classes: int

    @property
    def reading(self) -> Reading:
        """How the tensors are read as probabilities."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the form holds, in the order in which its reading takes it."""
        return (self.data,)

    def with_tensors(self: Form, *tensors: Tensor) -> Form:
        """The same form of other tensors, which are taken as they are: nothing is checked again."""
        raise NotImplementedError

    def tempered(self, temperature: float) -> "FiniteForm":
        """The distribution proportional to p^(1/temperature)."""
        raise NotImplementedError

    @property
    def batch_shape(self) -> torch.Size:
        """One distribution for each entry of this shape."""
        return self.data.shape[: self.data.dim() - (self.reading.event_dims[0] or 0)]

    def side(self, batch_shape: torch.Size) -> Side:
        """The tensors, broadcast without a copy to a common batch shape, and their reading."""
        reading = self.reading
        if batch_shape == self.batch_shape:
            return Side(reading, self.tensors)
        expanded = (
            x if dims is None else x.expand(*batch_shape, *x.shape[x.dim() - dims :])
            for x, dims in zip(self.tensors, reading.event_dims, strict=True)
        )
        return Side(reading, tuple(expanded))

    def expand(self, batch_shape: torch.Size) -> Tensor:
        """The first tensor, broadcast without a copy to a common batch shape."""
        return self.side(batch_shape).data[0]

    def probabilities(self) -> Tensor:
        """What the form means: (..., V), float64."""
        return self.side(self.batch_shape).weights().w

    # ------------------------------------------------------------ as a tensor of distributions

    @property
    def shape(self) -> torch.Size:
        """(*batch_shape, num_classes), whatever the tensors look like."""
        return torch.Size((*self.batch_shape, self.num_classes))

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """Of the first tensor."""
        return self.data.device

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to any tensor."""
        return any(x.requires_grad for x in self.tensors)

    def detach(self: Form) -> Form:
        """The same distributions, through which no gradient flows."""
        return self.with_tensors(*(x.detach() for x in self.tensors))

    def to(self: Form, *args: Any, **kwargs: Any) -> Form:
        """The tensors moved or cast as `Tensor.to` does it; integers keep their dtype."""
        device = self.data.new_empty(0).to(*args, **kwargs).device
        return self.with_tensors(
            *(x.to(*args, **kwargs) if x.is_floating_point() else x.to(device) for x in self.tensors)
        )

    def __getitem__(self: Form, index: Any) -> Form:
        """Rows: an index into the batch shape. The class axis stays whole, since a part of it does not sum to one."""
        found = index if isinstance(index, tuple) else (index,)
        try:
            torch.zeros((), device=self.device).expand(self.batch_shape)[found]
        except IndexError as error:
            raise FormError(
                f"{type(self).__name__}: batch shape {tuple(self.batch_shape)} has no such rows ({error}). "
                "The class axis stays whole; to cut it, index the tensor before making the form."
            ) from None
        rest = any(i is Ellipsis for i in found)
        return self.with_tensors(
            *(
                x if dims is None else x[(*found, *(slice(None),) * dims) if rest else found]
                for x, dims in zip(self.tensors, self.reading.event_dims, strict=True)
            )
        )

    def __len__(self) -> int:
        """Of the first batch axis."""
        if not self.batch_shape:
            raise TypeError(f"{type(self).__name__} of one distribution has no length")
        return self.batch_shape[0]


class _Columns(FiniteForm):
    """A form whose data has one column a class; it may have none as a shard, which is no distribution by itself."""

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        return self.data.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        return self.data.shape[:-1]

    def side(self, batch_shape: torch.Size) -> Side:
        data = self.data
        if data.shape[-1] == 0:
            refuse_no_class(type(self).__name__, "x", data)
        if batch_shape != data.shape[:-1]:
            data = data.expand(*batch_shape, data.shape[-1])
        return Side(self.reading, (data,))


_PLAIN_LOGITS = LogitsReading()


@dataclass(frozen=True, eq=False)
class Logits(_Columns):
    """Unnormalised log-probabilities: p = softmax(x / temperature) over the last axis.

    Args:
        x: (..., V), any floating dtype; -inf means "no mass here". A NaN, a +inf or a row of -inf only has
            no distribution: its value is NaN, and NaN propagates.
        temperature: a number > 0; 1 leaves the distribution alone, larger flattens it.

    Raises:
        FormError: no columns, an integer tensor, a temperature that is not a positive number.

    >>> from kullback import Logits, Probs, kl
    >>> kl(Logits([0.0, 0.0]), Probs([0.75, 0.25]))
    tensor(0.1438)
    """

    x: Array
    temperature: float = 1.0
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", floating_tensor("Logits", self.x, or_empty=True))
        object.__setattr__(self, "temperature", positive_number("Logits", "temperature", self.temperature))

    @property
    def reading(self) -> LogitsReading:
        return _PLAIN_LOGITS if self.temperature == 1.0 else LogitsReading(self.temperature)

    def with_tensors(self, *tensors: Tensor) -> "Logits":
        return Logits(tensors[0], self.temperature)

    def tempered(self, temperature: float) -> "Logits":
        return self if temperature == 1.0 else Logits(self.data, self.temperature * temperature)


@dataclass(frozen=True, eq=False)
class LogProbs(_Columns):
    """Normalised log-probabilities: p = exp(x) over the last axis.

    Args:
        x: (..., V), any floating dtype, each row with Σ exp(x) = 1 up to √eps of its dtype; -inf means "no mass".
        validate: check the values (not inside `torch.compile` or `vmap`).

    Raises:
        FormError: a row that is not normalised or holds NaN, no columns, an integer tensor.

    >>> import torch
    >>> from kullback import LogProbs, entropy
    >>> entropy(LogProbs(torch.log_softmax(torch.zeros(4), -1)), base=2)
    tensor(2.)
    """

    x: Array
    validate: bool = True
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = floating_tensor("LogProbs", self.x, or_empty=not self.validate)
        object.__setattr__(self, "data", data)
        if self.validate and readable(data):
            check_rows_sum_to_one(
                "LogProbs",
                data,
                torch.exp(data.detach().double()).sum(-1),
                "exp(x) sums",
                "Logits(x) if these are scores",
            )

    @property
    def reading(self) -> LogProbsReading:
        return LogProbsReading()

    def tempered(self, temperature: float) -> "FiniteForm":
        return self if temperature == 1.0 else Logits(self.data, temperature)

    def with_tensors(self, *tensors: Tensor) -> "LogProbs":
        return LogProbs(tensors[0], validate=False)


@dataclass(frozen=True, eq=False)
class Probs(_Columns):
    """Probabilities: p = x over the last axis, zeros allowed.

    Args:
        x: (..., V), any floating dtype, entries >= 0, each row summing to 1 up to √eps of its dtype. Nothing is
            renormalised; a sum that is off by rounding enters the value as Σq - Σp (see CONVENTIONS.md).
        validate: check the values (not inside `torch.compile` or `vmap`).

    Raises:
        FormError: a row that does not sum to one, is negative somewhere or holds NaN, no columns, an integer tensor.

    >>> from kullback import Probs, kl
    >>> kl(Probs([[0.5, 0.5]]), Probs([[0.75, 0.25]]))
    tensor([0.1438])
    """

    x: Array
    validate: bool = True
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = floating_tensor("Probs", self.x, or_empty=not self.validate)
        object.__setattr__(self, "data", data)
        if self.validate and readable(data):
            seen = data.detach()
            refuse_row(
                seen < 0,
                "Probs",
                lambda at: f"holds the negative entry {seen[at].min().item():g}",
                "Logits(x) if these are scores",
            )
            check_rows_sum_to_one(
                "Probs",
                data,
                seen.double().sum(-1),
                "sums",
                "Probs(x / x.sum(-1, keepdim=True)) if these are weights or counts",
            )

    @property
    def reading(self) -> ProbsReading:
        return ProbsReading()

    def tempered(self, temperature: float) -> "FiniteForm":
        if temperature == 1.0:
            return self
        zero = self.data == 0
        return Logits(torch.where(zero, -math.inf, torch.log(torch.where(zero, 1.0, self.data))), temperature)

    def with_tensors(self, *tensors: Tensor) -> "Probs":
        return Probs(tensors[0], validate=False)


@dataclass(frozen=True, eq=False)
class Labels(FiniteForm):
    """Class indices as distributions: one-hot, or smoothed.

    Args:
        y: (...), integers in [0, num_classes).
        num_classes: V.
        smoothing: ε in [0, 1], the mass taken from the label.
        spread: "all" gives every class ε/V, the label included (Szegedy et al. 2016; PyTorch's `cross_entropy`);
            "others" gives ε/(V-1) to every class but the label (WeNet, ESPnet).
        validate: check the values (not inside `torch.compile` or `vmap`).

    Raises:
        FormError: a label out of range, a floating tensor, a smoothing outside [0, 1].

    >>> from kullback import Labels, Probs, kl
    >>> kl(Labels([0, 1], num_classes=2, smoothing=0.1), Probs([0.75, 0.25]))
    tensor([0.1441, 1.1328])
    """

    y: Tensor | np.ndarray | Sequence[Any] | int
    num_classes: int
    smoothing: float = 0.0
    spread: Literal["all", "others"] = "all"
    validate: bool = True
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = dense_tensor("Labels", "y", self.y)
        if data.dtype in (torch.uint16, torch.uint32, torch.uint64):
            raise FormError(f"Labels: y has dtype {data.dtype}, with which PyTorch cannot compute. Write y.long().")
        if data.is_floating_point() or data.is_complex() or data.dtype == torch.bool:
            raise FormError(
                f"Labels: y has dtype {data.dtype}, but class labels are integers. "
                "Write Labels(y.long(), ...), or Probs(y) if y holds probabilities."
            )
        try:
            num_classes = operator.index(self.num_classes)
        except TypeError:
            raise FormError(
                f"Labels: num_classes is {self.num_classes!r}; write the integer number of classes."
            ) from None
        if num_classes < 1:
            raise FormError(f"Labels: num_classes is {num_classes}, but a distribution needs at least one class.")
        if not 0.0 <= self.smoothing <= 1.0:
            raise FormError(
                f"Labels: smoothing is {self.smoothing}, but it is a share of the mass: write a number from 0 to 1."
            )
        if self.spread not in ("all", "others"):
            raise FormError(
                f"Labels: spread is {self.spread!r}; write 'all' (ε/V everywhere) or 'others' (ε/(V-1) off the label)."
            )
        if self.spread == "others" and num_classes == 1 and self.smoothing > 0:
            raise FormError(
                "Labels: with num_classes=1 there is no other class to take the smoothing. Write spread='all'."
            )
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "num_classes", num_classes)
        object.__setattr__(self, "smoothing", float(self.smoothing))
        if self.validate and readable(data):
            outside = (data < 0) | (data >= num_classes)
            refuse_row(
                outside.unsqueeze(-1),
                "Labels",
                lambda at: f"holds {data[at].item()}, but num_classes={num_classes} allows 0 to {num_classes - 1}",
                "the labels without ignored rows (the losses take mask= and ignore_index=)",
            )

    @property
    def reading(self) -> LabelsReading:
        return LabelsReading(self.num_classes, self.smoothing, self.spread)

    @property
    def batch_shape(self) -> torch.Size:
        return self.data.shape

    def with_tensors(self, *tensors: Tensor) -> "Labels":
        return replace(self, y=tensors[0], validate=False)

    def tempered(self, temperature: float) -> "FiniteForm":
        if temperature == 1.0:
            return self
        return Logits(self.reading.weights(self.tensors).log_w, temperature)


def positive_number(owner: str, name: str, value: Any) -> float:
    """`value` as a finite float > 0, or an error that names `owner` and `name`."""
    if type(value) is float and 0.0 < value < math.inf:
        return value
    if isinstance(value, Tensor):
        raise FormError(
            f"{owner}: {name} is a tensor, through which no gradient would flow. Write a number, or scale the "
            f"logits yourself: Logits(x / {name})."
        )
    number = float(value)
    if not (0.0 < number < math.inf):
        raise FormError(f"{owner}: {name} is {value}, but it must be a finite number above 0.")
    return number


def dense_tensor(owner: str, name: str, x: Any) -> Tensor:
    """`x` as an ordinary dense tensor, or the error that says what it is instead."""
    if not isinstance(x, Tensor):
        if isinstance(x, np.ndarray) and not x.flags.writeable:
            x = x.copy()  # torch cannot share a read-only array
        try:
            return torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            hint = f" Write {owner}({name}.logits)." if hasattr(x, "logits") else ""
            raise FormError(
                f"{owner}: {name} is a {type(x).__name__}, which is no array of numbers ({error}).{hint}"
            ) from None
    if type(x).__name__ == "MaskedTensor":
        raise FormError(
            f"{owner}: {name} is a MaskedTensor. Write {owner}({name}.get_data()) and give the mask to a loss "
            "(mask=), or -inf as logit where a class has no mass."
        )
    if x.is_nested:
        raise FormError(
            f"{owner}: {name} is a nested tensor, whose rows differ in number. Write {owner}({name}.values()), "
            "or pad it and give a mask to the loss."
        )
    if x.layout is not torch.strided:
        raise FormError(f"{owner}: {name} has layout {x.layout}. Write {owner}({name}.to_dense()).")
    return x


def floating_tensor(owner: str, x: Any, name: str = "x", *, or_empty: bool = False) -> Tensor:
    """`x` as a dense tensor (..., V) of floating numbers, V >= 1, or the error that says what it is instead."""
    data = dense_tensor(owner, name, x)
    if not data.is_floating_point():
        if isinstance(x, Tensor) or data.is_complex() or data.dtype == torch.bool:
            raise FormError(
                f"{owner}: {name} has dtype {data.dtype}, but a floating dtype is needed. "
                f"Write {owner}({name}.float()), or Labels({name}, num_classes) if {name} holds class indices."
            )
        data = data.to(torch.get_default_dtype())
    if data.dim() == 0:
        raise FormError(
            f"{owner}: {name} is a single number, but a form holds (..., V). "
            f"Write {owner}({name}.unsqueeze(-1)) for V=1."
        )
    if data.shape[-1] == 0 and not or_empty:
        refuse_no_class(owner, name, data)
    return data


def refuse_no_class(owner: str, name: str, data: Tensor) -> None:
    """The error for a tensor that has no column."""
    raise FormError(
        f"{owner}: {name} has shape {tuple(data.shape)}, so V=0; a distribution needs at least one class (last axis)."
    )


def is_dtensor(x: Tensor) -> bool:
    """Whether it is a DTensor; `torch.distributed.tensor` is not imported for the question."""
    if type(x) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def readable(data: Tensor) -> bool:
    """Whether the values may be looked at: not while tracing, not inside a functorch transform, not a DTensor's, of
    which each rank would see another part.
    """
    if torch.compiler.is_compiling() or data.is_meta or is_dtensor(data):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(data)


def check_rows_sum_to_one(owner: str, data: Tensor, sums: Tensor, found: str, instead: str) -> None:
    """An error that names the first row whose sum, among `sums` (...), is not 1 up to √eps of the data's dtype."""
    tolerance = math.sqrt(torch.finfo(data.dtype).eps)
    off = ~((sums - 1.0).abs() <= tolerance)  # NaN counts as off
    rounded = math.sqrt(torch.finfo(torch.float32).eps)

    def describe(at: tuple[int, ...]) -> str:
        total = sums[at].item()
        if math.isnan(total):
            return "holds NaN, which has no distribution"
        told = f"{found} to {total:.10g}, not 1 (tolerance {tolerance:.1g} in {data.dtype})"
        if data.dtype == torch.float64 and abs(total - 1.0) < rounded:
            told += f"; it looks rounded to float32, where {owner}(x.float()) is right"
        return told

    refuse_row(off.unsqueeze(-1), owner, describe, instead)


def refuse_row(bad: Tensor, owner: str, describe: Any, instead: str) -> None:
    """Raise for the first row of (..., V) that is `bad` anywhere."""
    if not bool(bad.any()):
        return
    rows = bad.any(-1)
    at = tuple(int(i) for i in rows.nonzero()[0])
    where = "the row" if not at else f"row {at[0] if len(at) == 1 else at}"
    count = int(rows.sum())
    more = f" ({count} such rows)" if count > 1 else ""
    raise FormError(f"{owner}: {where} {describe(at)}{more}. Write {instead}.")


# what `torch.load(..., weights_only=True)` may build
torch.serialization.add_safe_globals([Logits, LogProbs, Probs, Labels])
