"""The terms of a loss: forms, a divergence between them, and which rows count."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm

from .average import Reduction, average
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
