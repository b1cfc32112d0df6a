"""The losses' door: settings are checked when a loss is built, tensors against each other when it is called.

Nothing broadcasts. A loss names the argument that says which rows there are (the student, usually), and every other
tensor holds the same rows: `labels` (8, 1) beside a student of 8 rows would make 64 of them, and teach the wrong thing
without a word.
"""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

import kullback.verbs
from kullback._errors import FormError
from kullback.divergences import Divergence
from kullback.forms.finite import FiniteForm, Logits, is_dtensor
from kullback.forms.sparse import Drawn, Draws

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rows:
    """The rows of one call, as the argument `name` of `owner` holds them."""

    owner: str
    name: str
    shape: torch.Size
    device: torch.device
    split: bool = False
    """They are a DTensor's."""

    def fit(self, **tensors: Any) -> None:
        """Each tensor that is not None holds one value for each of these rows, or an error says what to write."""
        for name, x in tensors.items():
            if x is not None:
                a_tensor(self.owner, name, x)
                self._split(name, x)
                self._same(name, x.shape, x.device, ())

    def mask(self, mask: Tensor | None, name: str = "mask") -> Tensor | None:
        """The mask, which is bool and has these rows."""
        if mask is None:
            return None
        a_tensor(self.owner, name, mask)
        if mask.dtype != torch.bool:
            raise FormError(
                f"{self.owner}: {name} has dtype {mask.dtype}, but True keeps a row and False drops it. "
                f"Write {name}.bool()."
            )
        self.fit(**{name: mask})
        return mask

    def labels(
        self, labels: Tensor, ignore_index: int, mask: Tensor | None = None, name: str = "labels"
    ) -> tuple[Tensor, Tensor]:
        """(labels with a harmless class in the rows that do not count, the rows that do)."""
        a_tensor(self.owner, name, labels)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise FormError(
                f"{self.owner}: {name} has dtype {labels.dtype}, but class labels are integers. Write {name}.long(), "
                f"or {name}.argmax(-1) if they are one-hot."
            )
        self.fit(**{name: labels})
        labels = labels.long()  # in a narrow dtype, -100 would be compared as 156
        keep = labels != ignore_index
        mask = self.mask(mask)
        keep = keep if mask is None else keep & mask
        return torch.where(keep, labels, 0), keep

    def _split(self, name: str, x: Tensor) -> None:
        if is_dtensor(x) != self.split:
            plain, other = (name, self.name) if self.split else (self.name, name)
            raise FormError(
                f"{self.owner}: {other} is a DTensor but {plain} is a plain tensor, so nobody knows which rows it has. "
                f"Write DTensor.from_local({plain}, mesh, placements) if it is what this rank holds, or "
                f"distribute_tensor({plain}, mesh, placements) if every rank holds the whole."
            )

    def _same(self, name: str, shape: torch.Size, device: torch.device, tail: tuple[int, ...]) -> None:
        """`tail`: the axes that `name` has after its rows, for the advice."""
        if shape != self.shape:
            raise FormError(
                f"{self.owner}: {self.name} has rows of shape {tuple(self.shape)} but {name} has {tuple(shape)}; "
                f"nothing is broadcast. {_advice(name, tuple(shape), tuple(self.shape), tail)}"
            )
        if device != self.device:
            raise FormError(
                f"{self.owner}: {self.name} is on {self.device} but {name} is on {device}. "
                f"Write {name}.to({str(self.device)!r})."
            )


def tensors(owner: str, **given: Tensor | None) -> Rows:
    """The rows of the first tensor, which all the others that are not None hold too."""
    (name, first), *others = ((name, x) for name, x in given.items() if x is not None)
    a_tensor(owner, name, first)
    rows = Rows(owner, name, first.shape, first.device, is_dtensor(first))
    rows.fit(**dict(others))
    return rows


def forms(owner: str, drawn: str = "", /, **given: Any) -> tuple[Rows, list[FiniteForm]]:
    """The arguments as forms over the same rows and classes: a tensor holds logits. The first says which rows.

    drawn: the name of the one that may be `Drawn`, which is then `Draws`.
    """
    read = {
        name: Draws(x) if name == drawn and isinstance(x, Drawn) else as_form(owner, name, x)
        for name, x in given.items()
    }
    (first_name, first), *others = read.items()
    rows = Rows(owner, first_name, first.batch_shape, first.device, is_dtensor(first.data))
    for name, form in others:
        if form.num_classes != first.num_classes:
            longer, v = max((first.num_classes, first_name), (form.num_classes, name))[1], first.num_classes
            raise FormError(
                f"{owner}: {first_name} has V={v} but {name} has V={form.num_classes}. If {longer}'s vocabulary is "
                f"padded, write {longer}[..., :{min(v, form.num_classes)}]."
            )
        rows._split(name, form.data)
        rows._same(name, form.batch_shape, form.device, (form.num_classes,))
    return rows, list(read.values())


def as_form(owner: str, name: str, x: Any) -> FiniteForm:
    """A tensor given to a loss by name holds logits; a form says itself what it holds."""
    if isinstance(x, FiniteForm):
        return x
    if isinstance(x, Drawn):
        raise FormError(only_kl_of_drawn(owner, name))
    a_tensor(owner, name, x, "a tensor of logits, or a form such as Probs(...)")
    try:
        return Logits(x)
    except FormError as error:
        raise FormError(f"{owner}: {name} is read as logits. {error}") from None


def only_kl_of_drawn(owner: str, name: str) -> str:
    """Why a loss does not take what was drawn from a teacher."""
    return (
        f"{owner}: {name} is Drawn, classes drawn from a teacher, of which KL(teacher‖student) alone has an unbiased "
        "estimate: reverse KL, Jensen-Shannon and others have none. Write Distillation(...)(teacher=Drawn(...)) with "
        "its divergence kl, GKD(beta=0, scaled=True), or TopK(...) as teacher."
    )


def a_tensor(owner: str, name: str, x: Any, needed: str = "a tensor") -> None:
    """An error for anything else; a model's output is told where its scores are."""
    if isinstance(x, Tensor):
        return
    what = f"{owner}: {name} is {'None' if x is None else 'a ' + type(x).__name__}, but {needed} is needed."
    if hasattr(x, "logits"):
        raise FormError(f"{what} A model's output holds its scores in .logits: write {name}=output.logits.")
    if isinstance(x, dict) and "logits" in x:
        raise FormError(f"{what} Write {name}=output['logits'].")
    if isinstance(x, FiniteForm):
        raise FormError(f"{what} A form stands for a distribution.")
    raise FormError(what if x is None else f"{what} Write torch.as_tensor({name}).")


def emptied(x: Tensor, keep: Tensor | None) -> Tensor:
    """`x` (*rows, ...) with zeros in the rows that do not count, so that what they hold reaches no gradient.

    `keep` is (*rows): bool, True where the row counts.
    """
    if keep is None:
        return x
    return torch.where(keep.reshape(keep.shape + (1,) * (x.dim() - keep.dim())), x, 0.0)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: sums and exponentials are not taken in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def number(owner: str, name: str, value: Any) -> float:
    """`value` as a float, or an error: tensors are no settings, for no gradient would flow to them."""
    if isinstance(value, Tensor):
        raise FormError(
            f"{owner}: {name} is a tensor, through which no gradient would flow. Write a number, such as {name}.item()."
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise FormError(f"{owner}: {name} is {value!r}, but it must be a number.")
    return float(value)


def share(owner: str, name: str, value: float) -> float:
    """`value` as a float in [0, 1], or an error that names `owner` and `name`."""
    if not 0.0 <= number(owner, name, value) <= 1.0:
        raise FormError(f"{owner}: {name} is {value}, but it is a share: write a number from 0 to 1.")
    return float(value)


def not_negative(owner: str, name: str, value: float) -> float:
    """`value` as a finite float >= 0, or an error that names `owner` and `name`."""
    if not 0.0 <= number(owner, name, value) < math.inf:
        raise FormError(f"{owner}: {name} is {value}, but it must be a finite number >= 0.")
    return float(value)


def positive(owner: str, name: str, value: float) -> float:
    """`value` as a finite float > 0, or an error that names `owner` and `name`."""
    if not 0.0 < number(owner, name, value) < math.inf:
        raise FormError(f"{owner}: {name} is {value}, but it must be a finite number above 0.")
    return float(value)


def integer(owner: str, name: str, value: Any, *, at_least: int | None = None) -> int:
    """`value` as an int, or an error that names `owner` and `name`."""
    try:
        whole = None if isinstance(value, bool | Tensor) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (at_least is not None and whole < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise FormError(f"{owner}: {name} is {value!r}, but it must be an integer{bound}.")
    return whole


def flag(owner: str, name: str, value: Any) -> bool:
    """`value`, which is True or False."""
    if not isinstance(value, bool):
        raise FormError(f"{owner}: {name} is {value!r}; write True or False.")
    return value


def one_of(owner: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """An error that lists what is allowed, if `value` is not."""
    if not any(value is x or (type(value) is type(x) and value == x) for x in allowed):
        raise FormError(f"{owner}: {name} is {value!r}; write {' or '.join(map(repr, allowed))}.")


def a_divergence(owner: str, value: F) -> F:
    """`value`, which takes two forms and gives one number per row: a verb, a row of the table, or one's own."""
    if isinstance(value, Divergence):
        return functools.partial(kullback.verbs.measure, value)
    if callable(value):
        return value
    if isinstance(value, str) and callable(getattr(kullback.verbs, value, None)) and not value.startswith("_"):
        instead = f"Write the verb itself: divergence=kullback.{value}."
    else:
        instead = "Write a verb, such as divergence=kullback.js, or a callable of two forms."
    raise FormError(f"{owner}: divergence is {value!r}. {instead}")


def _advice(name: str, its: tuple[int, ...], wanted: tuple[int, ...], tail: tuple[int, ...]) -> str:
    """What to write so that `name` has the rows that are wanted; `tail` are its axes behind the rows."""

    def written(shape: tuple[int, ...]) -> str:
        return ", ".join(map(str, shape + tail))

    if [n for n in its if n != 1] == [n for n in wanted if n != 1]:
        return f"Write {name}.reshape({written(wanted)})."
    if len(its) == 2 and its[::-1] == wanted:
        return f"Write {name}.transpose(0, 1)."
    if its[:-1] == wanted:
        return f"{name} has an axis more. One-hot labels are .argmax(-1); masks and weights have no class axis."
    if len(its) <= len(wanted) and all(n in (1, m) for n, m in zip(its[::-1], wanted[::-1], strict=False)):
        return f"If that is meant, write {name}.expand({written(wanted)})."
    if math.prod(its) == math.prod(wanted):
        return f"Write {name}.reshape({written(wanted)}), if the rows stand in the same order."
    return "Both hold the same rows: index or expand one of them."
