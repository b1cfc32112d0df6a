"""The second mood: divergences from samples, counts and draws, each with how sure it is.

>>> from kullback import Counts, estimate
>>> print(estimate.kl(Counts([50, 30, 20]), Counts([30, 60, 10]), base=2))
0.231213 bits ± 0.117 (95 %: 0.08494 to 0.5917), PlugIn(correction=MillerMadow()), n=100, m=100; bias: O(1/n²)
"""

from kullback.forms.empirical import Counts, LogRatios, Samples

from .homogeneity import KLTest, critical_value, homogeneity_test
from .mixtures import MixtureBound
from .monte_carlo import K1, K2, K3, MonteCarlo, Regressed
from .neighbours import NearestNeighbours
from .plug_in import (
    JEFFREYS_PRIOR,
    KRICHEVSKY_TROFIMOV_PRIOR,
    LAPLACE_PRIOR,
    DirichletPrior,
    Jackknife,
    MillerMadow,
    PlugIn,
    bootstrap_divergence,
)
from .resample import PermutationTest, bootstrap, permutation_test, subsample, subsample_stderr
from .result import Corrected, Estimate, Estimates, Interval
from .variational import Classifier, DonskerVaradhanBound, NWJBound
from .verb import kl

__all__ = [
    "JEFFREYS_PRIOR",
    "K1",
    "K2",
    "K3",
    "KRICHEVSKY_TROFIMOV_PRIOR",
    "LAPLACE_PRIOR",
    "Classifier",
    "Corrected",
    "Counts",
    "DirichletPrior",
    "DonskerVaradhanBound",
    "Estimate",
    "Estimates",
    "Interval",
    "Jackknife",
    "KLTest",
    "LogRatios",
    "MillerMadow",
    "MixtureBound",
    "MonteCarlo",
    "NWJBound",
    "NearestNeighbours",
    "PermutationTest",
    "PlugIn",
    "Regressed",
    "Samples",
    "bootstrap",
    "bootstrap_divergence",
    "critical_value",
    "homogeneity_test",
    "kl",
    "permutation_test",
    "subsample",
    "subsample_stderr",
]
