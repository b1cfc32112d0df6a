"""A distribution in float64: the same object with its parameters cast, through which gradients flow.

Known types are rebuilt from the parameters that the caller gave, so that nothing PyTorch derived from them in float32
(a reciprocal, say) enters. Others are copied with every floating tensor cast.
"""

import copy
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution
from torch.distributions.transforms import ExpTransform, Transform

from .registry import given_as_probs

_PARAMETERS: dict[type, tuple[str, ...]] = {
    distributions.Beta: ("concentration1", "concentration0"),
    distributions.Cauchy: ("loc", "scale"),
    distributions.Chi2: ("df",),
    distributions.Exponential: ("rate",),
    distributions.FisherSnedecor: ("df1", "df2"),
    distributions.Gamma: ("concentration", "rate"),
    distributions.GeneralizedPareto: ("loc", "scale", "concentration"),
    distributions.Gumbel: ("loc", "scale"),
    distributions.HalfCauchy: ("scale",),
    distributions.HalfNormal: ("scale",),
    distributions.InverseGamma: ("concentration", "rate"),
    distributions.Kumaraswamy: ("concentration1", "concentration0"),
    distributions.Laplace: ("loc", "scale"),
    distributions.LogNormal: ("loc", "scale"),
    distributions.Normal: ("loc", "scale"),
    distributions.Pareto: ("scale", "alpha"),
    distributions.StudentT: ("df", "loc", "scale"),
    distributions.Uniform: ("low", "high"),
    distributions.VonMises: ("loc", "concentration"),
    distributions.Weibull: ("scale", "concentration"),
}


_INVERSE = type(ExpTransform().inv)


def doubled(d: Distribution) -> Any:
    """The distribution in float64, unvalidated."""
    if type(d) in _PARAMETERS:
        names = _PARAMETERS[type(d)]
        kind: Any = type(d)
        return kind(*(getattr(d, name).double() for name in names), validate_args=False)
    if type(d) is distributions.Categorical:
        name = "probs" if given_as_probs(d) else "logits"
        value = getattr(d, name).double()
        if name == "probs":
            return distributions.Categorical(probs=value, validate_args=False)
        return distributions.Categorical(logits=value, validate_args=False)
    if type(d) is Independent:
        return Independent(doubled(d.base_dist), d.reinterpreted_batch_ndims, validate_args=False)
    if type(d) is MixtureSameFamily:
        return MixtureSameFamily(
            doubled(d.mixture_distribution), doubled(d.component_distribution), validate_args=False
        )
    if type(d) is TransformedDistribution:
        return TransformedDistribution(doubled(d.base_dist), [_cast(t) for t in d.transforms], validate_args=False)
    return _cast(d)


def _cast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_cast(item) for item in value)
    if isinstance(value, _INVERSE):
        return _cast(value.inv).inv
    if isinstance(value, Distribution | Transform):
        copied = copy.copy(value)
        for name, item in vars(value).items():
            if not name.startswith("_cached") and name != "_inv":
                vars(copied)[name] = doubled(item) if isinstance(item, Distribution) else _cast(item)
        if isinstance(copied, Transform):
            copied._inv = None  # the given one's inverse is not this one's
        if isinstance(copied, Distribution):
            copied._validate_args = False
        return copied
    return value
