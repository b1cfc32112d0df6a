"""What the losses share about their arguments: tensors given by name, settings, and rows that do not count."""

import math

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Logits

from .average import fit_mask


def as_form(x: Tensor | FiniteForm) -> FiniteForm:
    """A tensor given to a loss by name holds logits."""
    return Logits(x) if isinstance(x, Tensor) else x


def share(owner: str, name: str, value: float) -> float:
    """`value` as a float in [0, 1], or an error that names `owner` and `name`."""
    if not 0.0 <= value <= 1.0:
        raise FormError(f"{owner}: {name} is {value}, but it is a share: write a number from 0 to 1.")
    return float(value)


def not_negative(owner: str, name: str, value: float) -> float:
    """`value` as a finite float >= 0, or an error that names `owner` and `name`."""
    if not 0.0 <= value < math.inf:
        raise FormError(f"{owner}: {name} is {value}, but it must be a finite number >= 0.")
    return float(value)


def one_of(owner: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """An error that lists what is allowed, if `value` is not."""
    if value not in allowed:
        raise FormError(f"{owner}: {name} is {value!r}; write {' or '.join(map(repr, allowed))}.")


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


def kept(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """`mask` broadcast to the rows, None if there is none."""
    return None if mask is None else fit_mask(mask, shape)


def same_shape(owner: str, **tensors: Tensor | None) -> torch.Size:
    """The shape that all the given tensors share, or an error that says which two differ."""
    given = [(name, x.shape) for name, x in tensors.items() if x is not None]
    name, shape = given[0]
    for other, its in given[1:]:
        if its != shape:
            raise FormError(
                f"{owner}: {name} has shape {tuple(shape)} but {other} has {tuple(its)}. "
                "Both hold one number for the same rows: index or expand one of them."
            )
    return shape


def labelled(labels: Tensor, ignore_index: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(labels with a harmless class in the rows that do not count, the rows that do)."""
    keep = labels != ignore_index
    keep = keep if mask is None else keep & fit_mask(mask, labels.shape)
    return torch.where(keep, labels, 0), keep
