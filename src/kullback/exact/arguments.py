"""What the exact verbs are given: distributions, densities and forms, and how messages call them."""

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, OneHotCategorical

from kullback._errors import FormError
from kullback.core.dtypes import result_dtype as wider
from kullback.forms.density import Density
from kullback.forms.empirical import what_to_estimate
from kullback.forms.finite import FiniteForm, Logits, Probs

from .place import Support
from .registry import doubles, given_as_probs
from .shapes import batch_of
from .support import Measurable, support_of


def is_measurable(d: Any) -> TypeGuard[Measurable]:
    """Whether an argument of a verb is a distribution or density, and not a form."""
    return isinstance(d, Distribution | Density)


def as_form(d: Any) -> Any:
    """Bernoulli, Categorical and OneHotCategorical as finite forms; everything else as it is."""
    if isinstance(d, Bernoulli):
        if given_as_probs(d):
            (probs,) = doubles(d, "probs")
            return Probs(torch.stack([1.0 - probs, probs], -1), validate=False)
        return Logits(torch.stack([torch.zeros_like(d.logits), d.logits], -1))
    if isinstance(d, Categorical | OneHotCategorical):
        inner = d._categorical if isinstance(d, OneHotCategorical) else d
        if given_as_probs(inner):
            probs = inner.probs.double()
            return Probs(probs, validate=False)
        return Logits(inner.logits)
    return d


def check(verb: str, p: Any, q: Any) -> None:
    """Raise for what is no distribution, for batch shapes that do not broadcast, for counts against reals."""
    for name, d in (("p", p), ("q", q)):
        if not (is_measurable(d) or isinstance(d, FiniteForm)):
            raise FormError(
                what_to_estimate(verb, p, q)
                or f"{verb}: {name} is a bare {type(d).__name__}, which does not say what it holds. Write a "
                f"torch.distributions object, Density(log_prob, support=...), or a form such as Logits({name})."
            )
    try:
        batch_of(p, q)
    except RuntimeError:
        raise FormError(
            f"{verb}: p has batch shape {tuple(p.batch_shape)} but q has {tuple(q.batch_shape)}, which do not "
            "broadcast."
        ) from None
    kinds = [s.integers for s in map(support_if_any, (p, q)) if s is not None]
    if len(set(kinds)) == 2:
        raise FormError(
            f"{verb}: one of {name_of(p)} and {name_of(q)} lives on the integers and the other on the line."
        )


def support_if_any(d: Any) -> Support | None:
    """The support of a distribution or density on the line or the integers."""
    return support_of(d) if is_measurable(d) else None


def result_dtype(p: Any, q: Any) -> torch.dtype:
    """float64 if a parameter on either side is, else float32."""
    return wider(_dtype(p), _dtype(q))


def _dtype(d: Any) -> torch.dtype:
    """float64 if any parameter is; a Density counts for nothing."""
    if isinstance(d, FiniteForm):
        return d.data.dtype
    found = torch.float32
    for value in vars(d).values() if isinstance(d, Distribution) else ():
        if (isinstance(value, Tensor) and value.dtype == torch.float64) or (
            isinstance(value, Distribution) and _dtype(value) == torch.float64
        ):
            found = torch.float64
    return found


def name_of(d: Any) -> str:
    """As messages and plans call it."""
    if isinstance(d, Independent):
        return f"Independent({name_of(d.base_dist)}, {d.reinterpreted_batch_ndims})"
    return type(d).__name__


def silent(*distributions: Any) -> Tensor:
    """A zero that is connected to every parameter."""
    total = torch.zeros((), dtype=torch.float64)
    for d in distributions:
        for value in vars(d).values():
            if isinstance(value, Tensor) and value.requires_grad:
                total = total + 0.0 * value.double().sum()
    return total
