"""The only place that turns one number per row into a loss."""

import math
from typing import Literal

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import readable

from .inputs import Rows, number, one_of, tensors

Reduction = Literal["mean", "sum", "none"]


def average(
    values: Tensor, *, mask: Tensor | None = None, num_items: int | Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean of the kept rows: Σ_kept values / (number kept, or num_items).

    Args:
        values: (...), one number per row.
        mask: (...) bool, True keeps the row. A dropped row counts for nothing, whatever it holds: NaN and ±inf do not
            leak into the value or, through a verb, into any gradient.
        num_items: the denominator instead of the number of kept rows: a number, or a tensor of one element. With
            gradient accumulation or several ranks, pass the number of kept rows of the *whole* step to every part:
            the parts then add up to its loss.
        reduction: "mean"; "sum" without a denominator; "none" for the values, zero where dropped.

    Returns:
        A scalar ("none": shaped like `values`). With nothing kept, a zero that is connected to the graph, with
        zero gradients.

    Raises:
        FormError: a mask that is not bool or has another shape, num_items <= 0 (on a GPU a tensor is not read) or with
            another reduction than "mean".

    >>> import torch
    >>> average(torch.tensor([1.0, 3.0, float("nan")]), mask=torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_reduction("average", reduction)
    keep = tensors("average", values=values).mask(mask)
    check_num_items(num_items, reduction)
    kept = values if keep is None else torch.where(keep, values, 0.0)
    if reduction == "none":
        return kept
    total = kept.sum()
    return total if reduction == "sum" else total / _denominator(values.shape, keep, num_items)


def row_weights(
    rows: Rows,
    *,
    keep: Tensor | None = None,
    num_items: int | Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    scale: float = 1.0,
) -> Tensor | float:
    """What each row counts for, known before its value is: scale · average(values) = Σ weights · values.

    The sum runs over the rows whose weight is not 0; the others hold anything. Returns float64, (...), or one number
    where every row counts alike.

    >>> values = torch.tensor([1.0, 3.0, float("nan")])
    >>> weights = row_weights(tensors("loss", values=values), keep=~values.isnan())
    >>> weights
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_num_items(num_items, reduction)
    if keep is not None and keep.device.type == "cpu" and readable(keep) and bool(keep.all()):
        keep = None
    over = 1 if reduction == "sum" else _denominator(rows.shape, keep, num_items)
    if keep is None:
        return scale / over.double() if isinstance(over, Tensor) else scale / over
    return keep.double() * (scale / over.double() if isinstance(over, Tensor) else scale / over)


def check_reduction(owner: str, reduction: str) -> None:
    """An error unless there is such a reduction."""
    one_of(owner, "reduction", reduction, ("mean", "sum", "none"))


def check_num_items(num_items: int | Tensor | None, reduction: str = "mean") -> None:
    """An error unless it is one number above 0, with a mean to divide."""
    if num_items is None:
        return
    if reduction != "mean":
        raise FormError(
            f"num_items is the denominator of a mean, but reduction is {reduction!r}. Leave one of them out."
        )
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise FormError(
                f"num_items has shape {tuple(num_items.shape)}, but it is one number: the kept rows of the whole step. "
                "Write num_items.sum() if it counts them by parts."
            )
        if num_items.device.type != "cpu" or not readable(num_items):
            return
        num_items = num_items.item()  # type: ignore[assignment]
    if not 0.0 < number("average", "num_items", num_items) < math.inf:
        raise FormError(
            f"num_items is {num_items}, but it counts the kept rows of the whole step. If none is kept, leave it out: "
            "the loss is then a connected zero."
        )


def _denominator(shape: torch.Size, keep: Tensor | None, num_items: int | Tensor | None) -> float | Tensor:
    if isinstance(num_items, Tensor):
        return num_items.reshape(())
    if num_items is not None:
        return num_items
    if keep is None:
        return max(shape.numel(), 1)
    kept = keep.sum()
    return max(int(kept), 1) if kept.device.type == "cpu" and readable(kept) else kept.clamp(min=1)
