import copy
import math

import numpy as np
import pytest
import torch

from kullback import FormError
from kullback.losses import AdaptiveKL, DoubleHalveKL, EarlyStop, TrustRegion


def test_equals_ziegler_written_out():
    """lm-human-preferences, train_policy.py: value *= 1 + clip(current/target - 1, -0.2, 0.2) · n_steps / horizon."""
    ours, theirs = AdaptiveKL(0.2, target=6.0, horizon=10_000), 0.2
    for current in np.random.default_rng(0).uniform(-2.0, 20.0, 300):
        theirs *= 1 + np.clip(current / 6.0 - 1, -0.2, 0.2) * 64 / 10_000
        assert ours.update(current, steps=64) == pytest.approx(theirs, rel=1e-13)


def test_it_holds_a_target():
    """A plant whose KL is 1/coefficient: the controller settles where it should, from both sides."""
    for start in (0.01, 5.0):
        controller = AdaptiveKL(start, target=4.0, horizon=20)
        for _ in range(500):
            controller.update(1.0 / controller.coefficient, steps=10)
        assert controller.coefficient == pytest.approx(0.25, rel=1e-3)


def test_it_cannot_stick_at_zero_or_go_negative():
    controller = AdaptiveKL(0.2, target=1.0, horizon=10, minimum=1e-4)
    for _ in range(1000):
        assert controller.update(0.0, steps=40) >= 1e-4
    assert controller.coefficient == 1e-4
    assert controller.update(5.0, steps=40) > 1e-4
    with pytest.raises(FormError, match=r"clip·steps = 10 is not below horizon = 10"):
        controller.update(0.0, steps=50)  # the source would multiply by 1 - 0.2·5 = 0
    assert controller.update(-3.0, steps=1) == pytest.approx(controller.coefficient)  # k1 may be negative
    assert AdaptiveKL().update(math.inf, steps=100) > 0.2


def test_resume_from_a_checkpoint():
    one = AdaptiveKL(0.2, target=6.0)
    one.update(9.0, steps=100)
    two = AdaptiveKL(0.2, target=6.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.update(3.0, 64) == two.update(3.0, 64)
    for broken in ({}, {"coefficient": 0.0}, {"coefficient": -1.0}, {"coefficient": math.nan}, {"coefficient": "x"}):
        with pytest.raises(FormError, match="saved coefficient"):
            two.load_state_dict(broken)


def test_double_and_halve():
    """Schulman et al. 2017, section 4."""
    controller, beta = DoubleHalveKL(1.0, target=0.02), 1.0
    for d in np.random.default_rng(0).exponential(0.02, 100):
        if d < 0.02 / 1.5:
            beta = max(beta / 2, 1e-6)
        elif d > 0.02 * 1.5:
            beta = min(beta * 2, 1e6)
        assert controller.update(torch.tensor(d)) == beta
    assert controller.update(0.02) == beta
    for _ in range(2000):
        assert controller.update(0.0) > 0
    assert controller.update(1.0) == 2e-6


def test_early_stop():
    stop = EarlyStop(target=0.01, tolerance=2.0)
    assert [stop(x) for x in (-0.1, 0.0, 0.02, 0.0201, math.inf)] == [False, False, False, True, True]


def test_trust_region_takes_the_largest_allowed_step():
    region = TrustRegion(max_kl=0.01, backtrack=0.8, trials=10)
    tried = []

    def quadratic(scale):
        tried.append(scale)
        return torch.tensor(0.02 * scale**2, dtype=torch.float64), 1.0 - 0.5 * scale

    step = region.search(quadratic)
    assert step.scale == pytest.approx(0.8**2)  # 0.02·0.8² = 0.0128 is too far, 0.02·0.64² = 0.0082 is not
    assert tried == pytest.approx([1.0, 0.8, 0.64])
    assert step.kl <= 0.01
    assert step.improvement > 0
    assert region.search(lambda scale: (0.0, -1.0)) is None
    assert region.search(lambda scale: (math.nan, 1.0)) is None
    assert [region.allows(*pair) for pair in ((0.01, 1.0), (0.0100001, 1.0), (0.001, 0.0), (0.001, math.nan))] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdaptiveKL(0.0), "coefficient is 0.0"),
        (lambda: AdaptiveKL(target=0.0), "target is 0.0"),
        (lambda: AdaptiveKL(target=-1.0), "target is -1.0"),
        (lambda: AdaptiveKL(horizon=0), "horizon is 0"),
        (lambda: AdaptiveKL(1e-9), "outside"),
        (lambda: AdaptiveKL().update(math.nan), "NaN"),
        (lambda: AdaptiveKL().update(1.0, steps=-1), "steps is -1"),
        (lambda: DoubleHalveKL(factor=1.0), "factor is 1.0"),
        (lambda: DoubleHalveKL(tolerance=0.5), "tolerance is 0.5"),
        (lambda: DoubleHalveKL().update(torch.tensor(math.nan)), "NaN"),
        (lambda: EarlyStop(target=-1.0), "target is -1.0"),
        (lambda: EarlyStop()(math.nan), "NaN"),
        (lambda: TrustRegion(max_kl=0.0), "max_kl is 0.0"),
        (lambda: TrustRegion(backtrack=1.0), "backtrack is 1.0"),
        (lambda: TrustRegion(trials=0), "trials is 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()
