"""The Kullback-Leibler divergence and its relatives: to measure with, to train with, to trust."""

from . import estimate
from ._errors import FormError, KullbackError, NoExactMethod, ToleranceError
from .exact.transport import wasserstein
from .forms.density import Density
from .forms.empirical import Counts, LogRatios, Samples
from .forms.finite import Labels, Logits, LogProbs, Probs
from .forms.points import Points
from .route import Route, explain
from .total import Term, total
from .verbs import (
    alpha,
    chi2,
    contributions,
    cross_entropy,
    entropy,
    hellinger,
    jeffreys,
    js,
    kl,
    measure,
    renyi,
    skew,
    triangular,
    tsallis,
    tv,
)

__all__ = [
    "Counts",
    "Density",
    "FormError",
    "KullbackError",
    "Labels",
    "LogProbs",
    "LogRatios",
    "Logits",
    "NoExactMethod",
    "Points",
    "Probs",
    "Route",
    "Samples",
    "Term",
    "ToleranceError",
    "alpha",
    "chi2",
    "contributions",
    "cross_entropy",
    "entropy",
    "estimate",
    "explain",
    "hellinger",
    "jeffreys",
    "js",
    "kl",
    "measure",
    "renyi",
    "skew",
    "total",
    "triangular",
    "tsallis",
    "tv",
    "wasserstein",
]
__version__ = "0.1.0"
