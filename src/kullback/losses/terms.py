"""The terms of a loss: forms, a divergence between them, and which rows count."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kullback._errors import FormError
from kullback.divergences import KL
from kullback.forms.finite import FiniteForm
from kullback.forms.sparse import Draws
from kullback.terms import Term as WeighedTerm
from kullback.terms import total_and_parts
from kullback.verbs import cross_entropy, row_of

from .average import Reduction, average, row_weights
from .inputs import Rows, only_kl_of_drawn

Divergence = Callable[[FiniteForm, FiniteForm], Tensor]


class Term(NamedTuple):
    """scale · (mean of divergence(p, q), less `less`, a constant for each row, over the rows kept)."""

    rows: Rows
    divergence: Divergence
    p: FiniteForm
    q: FiniteForm
    keep: Tensor | None = None
    num_items: int | Tensor | None = None
    scale: float = 1.0
    less: Tensor | None = None

    def value(self, reduction: Reduction = "mean") -> Tensor:
        """The term alone; "none" gives its rows, zero where they are dropped."""
        mean = average(self.per_row(), mask=self.keep, num_items=self.num_items, reduction=reduction)
        return mean if self.scale == 1.0 else self.scale * mean

    def weight(self, weight: float, reduction: Literal["mean", "sum"]) -> Tensor | float:
        """What each row counts for in weight · value, known before the divergence is; one number if all are alike."""
        return row_weights(
            self.rows, keep=self.keep, num_items=self.num_items, reduction=reduction, scale=weight * self.scale
        )

    def per_row(self) -> Tensor:
        """divergence(p, q), which must be one number for each of the rows."""
        values = self.divergence(self.p, self.q)
        shape = values.shape if isinstance(values, Tensor) else type(values).__name__
        if shape != self.rows.shape:
            raise FormError(
                f"{self.rows.owner}: divergence returned {shape if isinstance(shape, str) else tuple(shape)} for rows "
                f"of shape {tuple(self.rows.shape)}. It must give one number per row; the loss averages them."
            )
        return values if self.less is None else values - self.less.to(values.dtype)


def from_teacher(
    rows: Rows,
    divergence: Divergence,
    p: FiniteForm,
    q: FiniteForm,
    keep: Tensor | None,
    num_items: int | Tensor | None,
    scale: float = 1.0,
) -> Term:
    """The term of a teacher, mostly p. Of drawn classes only KL has an unbiased estimate: Σ share log p/q."""
    if not isinstance(p, Draws) and not isinstance(q, Draws):
        return Term(rows, divergence, p, q, keep, num_items, scale)
    if row_of(divergence) != KL or not isinstance(p, Draws):
        raise FormError(only_kl_of_drawn(rows.owner, "teacher"))
    return Term(rows, cross_entropy, p, q, keep, num_items, scale, less=p.surprise)


def mixed(terms: Sequence[tuple[float, Term]], reduction: Reduction = "mean") -> tuple[Tensor, list[Tensor]]:
    """(Σ weight · term, the value of each term, detached). A term of weight 0 adds nothing, even where it is infinite.

    Where every divergence is a row of the table that adds up, they are one `total`: tensors are read once, and
    gradients are made in the same pass. Else each term is measured by itself.
    """
    if reduction == "none" or torch.compiler.is_compiling():
        return _apart(terms, reduction)
    rows = [row_of(term.divergence) for _, term in terms]
    one_v = len({term.p.num_classes for _, term in terms}) == 1
    if not one_v or any(row is None or row.linear is None for row in rows) or any(w == 0.0 for w, _ in terms):
        return _apart(terms, reduction)
    summed = [
        WeighedTerm(row, term.p, term.q, term.weight(weight, reduction))
        for (weight, term), row in zip(terms, rows, strict=True)
        if row is not None
    ]
    loss, parts = total_and_parts(summed)
    values = list(parts.unbind())
    for k, ((_, term), made) in enumerate(zip(terms, summed, strict=True)):
        if term.less is not None:
            constant = _weighted(term.less, made.weights).to(loss.dtype)
            loss, values[k] = loss - constant, values[k] - constant
    return loss, [value / weight for (weight, _), value in zip(terms, values, strict=True)]


def _weighted(rows: Tensor, weights: Tensor | float) -> Tensor:
    """Σ weights · rows; a row of weight 0 holds anything."""
    if isinstance(weights, Tensor):
        return torch.where(weights != 0, weights * rows, 0.0).sum()
    return weights * rows.sum()


def _apart(terms: Sequence[tuple[float, Term]], reduction: Reduction) -> tuple[Tensor, list[Tensor]]:
    values = [term.value(reduction) for _, term in terms]
    counted = [weight * value for (weight, _), value in zip(terms, values, strict=True) if weight != 0.0]
    detached = [value.detach() for value in values]
    if not counted:
        return 0.0 * torch.where(values[0].isfinite(), values[0], 0.0), detached
    return sum(counted[1:], counted[0]), detached


def loss_of(term: Term, reduction: Reduction = "mean") -> Tensor:
    """The loss that has one term."""
    return mixed([(1.0, term)], reduction)[0]
