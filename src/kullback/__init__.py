"""The Kullback-Leibler divergence and its relatives: to measure with, to train with, to trust."""

from . import estimate, verbs
from ._errors import FormError, KullbackError, NoExactMethod, ToleranceError
from .exact.transport import wasserstein
from .forms.density import Density
from .forms.empirical import Counts, LogRatios, Samples
from .forms.finite import Labels, Logits, LogProbs, Probs
from .forms.linear import LinearLogits
from .forms.points import Points
from .forms.sharded import Sharded
from .forms.sparse import Drawn, TopK, draw, top_k
from .route import Route, explain
from .terms import Term, total
from .verbs import *  # noqa: F403  (a verb is exported where it is written)

__all__ = [
    "Counts",
    "Density",
    "Drawn",
    "FormError",
    "KullbackError",
    "Labels",
    "LinearLogits",
    "LogProbs",
    "LogRatios",
    "Logits",
    "NoExactMethod",
    "Points",
    "Probs",
    "Route",
    "Samples",
    "Sharded",
    "Term",
    "ToleranceError",
    "TopK",
    "draw",
    "estimate",
    "explain",
    "top_k",
    "total",
    "wasserstein",
]
__all__ += verbs.__all__
__version__ = "0.2.0"
