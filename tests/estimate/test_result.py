import math

import pytest

from kullback.estimate import K1, K3, DirichletPrior, Estimate, MonteCarlo, PlugIn
from kullback.estimate.result import brief


def made(**options):
    return Estimate(0.5, 0.1, 100, bias="none", method=K3(), **options)


# tabulated quantiles: z(.975) = 1.959964, z(.95) = 1.644854, t(.975; 4) = 2.776445, t(.95; 4) = 2.131847
@pytest.mark.parametrize(
    ("options", "level", "low", "high"),
    [
        ({}, 0.95, 0.5 - 0.1959964, 0.5 + 0.1959964),
        ({}, 0.90, 0.5 - 0.1644854, 0.5 + 0.1644854),
        ({"df": 4}, 0.95, 0.5 - 0.2776445, 0.5 + 0.2776445),
        ({"covers": "lower"}, 0.95, 0.5 - 0.1644854, math.inf),
        ({"covers": "upper", "df": 4}, 0.95, 0.0, 0.5 + 0.2131847),
    ],
)
def test_intervals_by_tabulated_quantiles(options, level, low, high):
    assert made(**options).interval(level) == pytest.approx((low, high), abs=1e-6)


def test_units_scale_value_and_standard_error():
    bits = made().to(2)
    assert (bits.value, bits.stderr) == pytest.approx((0.5 / math.log(2), 0.1 / math.log(2)))
    assert bits.unit == "bits"
    assert made().to(10).unit == "base 10"
    assert made().to(math.e) == made()


def test_a_method_is_shown_as_one_would_write_it():
    assert brief(K3()) == "K3()"
    assert brief(MonteCarlo(100, K1(self_normalised=True))) == "MonteCarlo(n=100, term=K1(self_normalised=True))"
    assert brief(PlugIn(prior=DirichletPrior(0.5))) == "PlugIn(prior=DirichletPrior(alpha=0.5))"


def test_what_is_printed():
    assert str(made(m=7, verdict="too few")) == (
        "0.5 nats ± 0.1 (95 %: 0.304 to 0.696), K3(), n=100, m=7; caution: too few"
    )
