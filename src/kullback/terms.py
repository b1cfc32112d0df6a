"""Weighted sums of divergences over rows: what a loss is, before it has a name."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._errors import FormError
from .divergences import Divergence
from .engines import totals
from .forms.finite import FiniteForm, is_dtensor
from .route import sides


class Term(NamedTuple):
    """Σ_rows weights · divergence(p‖q).

    divergence   a row of `kullback.divergences`
    p, q         forms over the same V; their batch shapes broadcast
    weights      one number for all rows, or a tensor of the common batch shape: a mask, 1/(number kept), a mixing
                 share. A row of weight 0 is dropped, and may hold NaN. No gradient flows to weights.

    >>> from kullback import divergences
    >>> total([Term(divergences.KL, Probs([0.5, 0.5]), Probs([0.75, 0.25]), weights=2.0)])
    tensor(0.2877)
    """

    divergence: Divergence
    p: FiniteForm
    q: FiniteForm
    weights: Tensor | float = 1.0


class Total(NamedTuple):
    """The sum of all terms, differentiable, and each term's own value, (K,), without gradient."""

    value: Tensor
    parts: Tensor


def total(terms: Sequence[Term], *, out: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
    """Σ_terms Σ_rows weights · divergence(p‖q): one number, as a loss.

    The terms share V and the batch shape that their rows have. A tensor that appears in several terms, at whatever
    temperature, is read once; where the C++ engine serves all terms, the gradients are made in the same pass.

    Args:
        terms: `Term`s.
        out: (tensor, buffer) pairs: the gradient to `tensor`, which must be one that a form holds, is written into
            `buffer`, contiguous and of its shape and dtype, during the call. Backward then gives out that very buffer.

    Returns: a scalar, float64 if an input is float64 and float32 otherwise. With all weights 0, a zero that is
        connected to the graph, with zero gradients.
    Gradients: to every tensor that requires them, once and twice, with `retain_graph`.
    Raises: FormError: no terms, different V or batch shapes, weights of another shape or that require grad.

    >>> from kullback import divergences
    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> soft = Term(divergences.KL, Logits(teacher, 2.0), Logits(student, 2.0), weights=0.5 * 4.0)
    >>> hard = Term(divergences.CROSS_ENTROPY, Labels([0], 2), Logits(student), weights=0.5)
    >>> total([soft, hard])
    tensor(0.5685, grad_fn=<_TotalBackward>)
    """
    return total_and_parts(terms, out=out).value


def rows(terms: Sequence[Term]) -> Tensor:
    """weights · divergence(p‖q) of every row of every term, (K, ...): several divergences of the same rows at once.

    As `total` without its sum: a tensor that appears in several terms is read once, and its exponentials are taken
    once, where the C++ engine serves all terms.

    Returns: (K, ...) of the batch shape, float64 if an input is float64 and float32 otherwise; 0 where the weight is 0.
    Gradients: to every tensor that requires them; the terms are then measured one by one.
    Raises: FormError: as for `total`.

    >>> from kullback import divergences
    >>> p, q = Logits([[0.0, 1.0], [2.0, 0.0]]), Logits([[0.0, 0.0], [0.0, 0.0]])
    >>> rows([Term(divergences.KL, p, q), Term(divergences.KL, q, p), Term(divergences.CROSS_ENTROPY, p, p)])
    tensor([[0.1109, 0.3278],
            [0.1201, 0.4338],
            [0.5822, 0.3653]])
    """
    return totals.rows(*_weighed("rows", terms))


def total_and_parts(terms: Sequence[Term], *, out: Sequence[tuple[Tensor, Tensor]] = ()) -> Total:
    """`total`, with the value of each term beside it."""
    return Total(*totals.total(*_weighed("total", terms), _checked(out)))


def _weighed(verb: str, terms: Sequence[Term]) -> tuple[list[totals.Weighed], int]:
    """The terms, checked, and their number of classes."""
    if not terms:
        raise FormError(f"{verb}: there are no terms. Write {verb}([Term(divergence, p, q, weights), ...]).")
    weighed = [_weigh(verb, k, term) for k, term in enumerate(terms)]
    first = terms[0].p.num_classes
    for term in terms[1:]:
        if term.p.num_classes != first:
            raise FormError(f"{verb}: one term has V={first} and another V={term.p.num_classes}; they share their V.")
    batch = weighed[0].p.batch_shape
    for w in weighed[1:]:
        if w.p.batch_shape != batch:
            raise FormError(
                f"{verb}: one term has batch shape {tuple(batch)} and another {tuple(w.p.batch_shape)}. "
                f"They share their rows: write {verb} for each."
            )
    return weighed, first


def _weigh(verb: str, k: int, term: Term) -> totals.Weighed:
    p, q = sides(verb, term.p, term.q)
    weights = term.weights
    if isinstance(weights, Tensor):
        if weights.requires_grad:
            raise FormError(
                f"{verb}: the weights of term {k} require grad, but none flows to weights. Write weights.detach(), or "
                "measure the rows with a verb and multiply them."
            )
        if weights.dim() and weights.shape != p.batch_shape:
            raise FormError(
                f"{verb}: the weights of term {k} have shape {tuple(weights.shape)}, but there is one row for each of "
                f"{tuple(p.batch_shape)}. Write weights.expand({tuple(p.batch_shape)}) if that is meant."
            )
        if weights.dim() and is_dtensor(weights) != is_dtensor(p.data[0]):
            raise FormError(
                f"{verb}: either the weights of term {k} or its rows are a DTensor, but not both. Write "
                "DTensor.from_local(weights, mesh, placements) if they are those of this rank's rows, or "
                "distribute_tensor(weights, mesh, placements) if every rank holds them all."
            )
        weights = weights.to(torch.float64)
    else:
        weights = float(weights)
    return totals.Weighed(term.divergence, p, q, weights)


def _checked(out: Sequence[tuple[Tensor, Tensor]]) -> Sequence[tuple[Tensor, Tensor]]:
    for x, buffer in out:
        if buffer.shape != x.shape or buffer.dtype != x.dtype or not buffer.is_contiguous():
            raise FormError(
                f"total: a buffer in out= has shape {tuple(buffer.shape)} and dtype {buffer.dtype} for a tensor of "
                f"{tuple(x.shape)} and {x.dtype}; they are alike, and the buffer is contiguous."
            )
    return out
