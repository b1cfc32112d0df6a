import json
import math

import numpy as np
import pytest
import torch
from scipy import special

from kullback import FormError
from kullback.estimate import K1, K3, Corrected, DirichletPrior, Estimate, MonteCarlo, PlugIn
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
    whole = made(corrected=Corrected(0.7, 0.2), slope=0.01)
    for one, other in zip(whole.to(2).interval(), whole.interval(), strict=True):
        assert one == pytest.approx(other / math.log(2), rel=1e-12)
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


def negative(**options):
    return Estimate(-0.02, 0.05, 100, bias="none", method=K3(), **options)


def test_a_divergence_is_never_below_zero_and_the_raw_number_stays():
    found = negative()
    assert (found.value, found.raw, float(found)) == (0.0, -0.02, 0.0)
    assert found.interval() == pytest.approx((0.0, 1.959964 * 0.05), abs=1e-6)
    assert Estimate(-0.2, 0.01, 100, bias="none", method=K3()).interval().high == pytest.approx(0.0195996, abs=1e-6)
    assert Estimate(0.01, 0.1, 9, bias="none", method=K3(), covers="lower").interval() == (0.0, math.inf)
    assert math.isnan(Estimate(math.nan, 0.1, 9, bias="none", method=K3()).value)


def test_an_estimate_behaves_as_a_number():
    """P6. What arithmetic gives is a float: the error is dropped, and no Estimate with a wrong one is made."""
    e, other = made(), negative()
    assert (float(e), f"{e:.3f}", f"{e:6.2e}", round(e, 1), round(e)) == (0.5, "0.500", "5.00e-01", 0.5, 0)
    assert f"{e}" == str(e)
    assert e > 0.1
    assert 0.1 < e <= 0.5 <= e < 0.6
    assert e >= other
    assert other < e
    assert e == 0.5
    assert e != 0.4
    assert e == made()
    assert e != made(m=3)
    assert hash(e) == hash(made())
    for value, truth in (
        (e + 1, 1.5),
        (1 - e, 0.5),
        (2 * e, 1.0),
        (e / 4, 0.125),
        (1 / e, 2.0),
        (e**2, 0.25),
        (2**e, 2**0.5),
        (e - other, 0.5),
        (e + e, 1.0),
        (-e, -0.5),
        (abs(e), 0.5),
        (sum([e, e]), 1.0),
        (math.log(e), math.log(0.5)),
        (np.float64(2.0) * e, 1.0),
    ):
        assert value == truth
        assert isinstance(value, float)
    assert torch.equal(torch.ones(2) * e, torch.full((2,), 0.5))
    assert max([e, other]) is e
    assert json.dumps(float(e)) == "0.5"
    with pytest.raises(TypeError):
        _ = e + "1"


def test_repr_shows_value_error_unit_and_caution():
    assert repr(made()) == "Estimate(0.5 ± 0.1 nats)"
    assert repr(made(verdict="too few").to(2)) == "Estimate(0.721348 ± 0.144 bits; caution: too few)"
    assert repr(Estimate(0.3, math.nan, 5, bias="none", method=K3())) == "Estimate(0.3 nats)"


def test_the_interval_of_a_value_and_its_correction():
    """Imbens & Manski 2004: c with Φ(c + Δ/s) - Φ(-c) = 0.95 on both ends of the set from the one to the other."""
    found = made(corrected=Corrected(0.6, 0.2))
    low, high = found.interval()
    c = (high - 0.6) / 0.2
    assert special.ndtr(c + 0.1 / 0.2) - special.ndtr(-c) == pytest.approx(0.95, abs=1e-9)
    assert low == pytest.approx(min(0.5 - 0.1 * c, 0.6 - 0.2 * c), rel=1e-9)
    assert made(corrected=Corrected(0.5, 0.1)).interval() == pytest.approx(made().interval(), rel=1e-9)
    far = made(corrected=Corrected(9.0, 0.1)).interval()
    assert far == pytest.approx((0.5 - 0.1644854, 9.0 + 0.1644854), abs=1e-6)
    assert made(corrected=Corrected(0.5, math.nan)).interval() == (0.0, math.inf)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 2.0])
def test_a_level_outside_of_0_to_1_is_refused(level):
    with pytest.raises(FormError, match="between 0 and 1"):
        made().interval(level)
