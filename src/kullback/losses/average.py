"""The only place that turns one number per row into a loss."""

from typing import Literal

import torch
from torch import Tensor

from kullback._errors import FormError

Reduction = Literal["mean", "sum", "none"]


def average(
    values: Tensor, *, mask: Tensor | None = None, num_items: int | Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean of the kept rows: Σ_kept values / (number kept, or num_items).

    Args:
        values: (...), one number per row.
        mask: (...) or broadcastable to it, bool, True keeps the row. A dropped row counts for nothing, whatever it
            holds: NaN and ±inf do not leak into the value or, through a verb, into any gradient.
        num_items: the denominator instead of the number of kept rows. With gradient accumulation or several ranks,
            pass the number of kept rows of the *whole* step to every part: the parts then add up to its loss.
        reduction: "mean"; "sum" without a denominator; "none" for the values, zero where dropped.

    Returns:
        A scalar ("none": shaped like `values`). With nothing kept, a zero that is connected to the graph, with
        zero gradients.

    Raises:
        FormError: a mask that is not bool or does not fit, num_items <= 0 or with another reduction than "mean".

    >>> import torch
    >>> average(torch.tensor([1.0, 3.0, float("nan")]), mask=torch.tensor([True, True, False]))
    tensor(2.)
    """
    if reduction not in ("mean", "sum", "none"):
        raise FormError(f"average: reduction is {reduction!r}; write 'mean', 'sum' or 'none'.")
    if num_items is not None:
        _check_num_items(num_items, reduction)
    keep = None if mask is None else fit_mask(mask, values.shape)
    kept = values if keep is None else torch.where(keep, values, 0.0)
    if reduction == "none":
        return kept
    total = kept.sum()
    if reduction == "sum":
        return total
    if num_items is not None:
        return total / num_items
    count = values.numel() if keep is None else keep.sum()
    return total / (max(count, 1) if isinstance(count, int) else count.clamp(min=1))


def fit_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """`mask` broadcast to one bool per row, or the error that says why not."""
    if mask.dtype != torch.bool:
        raise FormError(f"mask has dtype {mask.dtype}, but True keeps a row and False drops it. Write mask.bool().")
    try:
        return mask.expand(shape)
    except RuntimeError:
        raise FormError(
            f"mask has shape {tuple(mask.shape)}, but there is one value per row: {tuple(shape)}. "
            "Leave the class axis out of the mask."
        ) from None


def _check_num_items(num_items: int | Tensor, reduction: str) -> None:
    if reduction != "mean":
        raise FormError(
            f"num_items is the denominator of a mean, but reduction is {reduction!r}. Leave one of them out."
        )
    if not isinstance(num_items, Tensor) and not num_items > 0:
        raise FormError(
            f"num_items is {num_items}, but it counts the kept rows of the whole step. If none is kept, leave it out: "
            "the loss is then a connected zero."
        )
