"""The terms of a loss: forms, a divergence between them, and which rows count."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm

from .average import Reduction, average, row_weights
from .inputs import Rows

Divergence = Callable[[FiniteForm, FiniteForm], Tensor]


class Term(NamedTuple):
    """scale · (mean of divergence(p, q) over the rows kept)."""

    rows: Rows
    divergence: Divergence
    p: FiniteForm
    q: FiniteForm
    keep: Tensor | None = None
    num_items: int | Tensor | None = None
    scale: float = 1.0

    def value(self, reduction: Reduction = "mean") -> Tensor:
        """The term alone; "none" gives its rows, zero where they are dropped."""
        mean = average(self.per_row(), mask=self.keep, num_items=self.num_items, reduction=reduction)
        return mean if self.scale == 1.0 else self.scale * mean

    def weights(self, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """What each row counts for in `value`, known before the divergence is: (...), float64, 0 where dropped."""
        return row_weights(self.rows, keep=self.keep, num_items=self.num_items, reduction=reduction, scale=self.scale)

    def per_row(self) -> Tensor:
        """divergence(p, q), which must be one number for each of the rows."""
        values = self.divergence(self.p, self.q)
        shape = values.shape if isinstance(values, Tensor) else type(values).__name__
        if shape != self.rows.shape:
            raise FormError(
                f"{self.rows.owner}: divergence returned {shape if isinstance(shape, str) else tuple(shape)} for rows "
                f"of shape {tuple(self.rows.shape)}. It must give one number per row; the loss averages them."
            )
        return values


def mixed(terms: Sequence[tuple[float, Term]], reduction: Reduction = "mean") -> tuple[Tensor, list[Tensor]]:
    """(Σ weight · term, the value of each term). A term of weight 0 adds nothing, even where it is infinite."""
    values = [term.value(reduction) for _, term in terms]
    counted = [weight * value for (weight, _), value in zip(terms, values, strict=True) if weight != 0.0]
    if not counted:
        return 0.0 * torch.where(values[0].isfinite(), values[0], 0.0), values
    return sum(counted[1:], counted[0]), values
