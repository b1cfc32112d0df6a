"""Places on the line: what a transform says on the way back, against the transform itself and 60 digits."""

import math

import mpmath
import pytest
import torch
import torch.distributions as td
from torch.distributions import constraints

from kullback import Density, js, kl
from kullback.exact.doubled import doubled
from kullback.exact.place import Place, Support, back, image, is_exact, log_gap, place_of

INF = math.inf
EXP, SIGMOID, TANH, SOFTPLUS = td.ExpTransform(), td.SigmoidTransform(), td.TanhTransform(), td.SoftplusTransform()
LINES = {
    "exp": (EXP, [(-INF, INF), (0.5, INF), (-INF, 2.0), (0.5, 2.0)]),
    "log": (EXP.inv, [(0.0, INF), (0.0, 3.0), (0.5, INF), (0.5, 3.0)]),
    "sigmoid": (SIGMOID, [(-INF, INF), (-1.0, INF), (-INF, 2.0), (-1.0, 2.0)]),
    "logit": (SIGMOID.inv, [(0.0, 1.0), (0.2, 1.0), (0.0, 0.9), (0.2, 0.9)]),
    "tanh": (TANH, [(-INF, INF), (-1.0, INF), (-INF, 1.5), (-1.0, 1.5)]),
    "atanh": (TANH.inv, [(-1.0, 1.0), (-0.5, 1.0), (-1.0, 0.8), (-0.5, 0.8)]),
    "rising line": (td.AffineTransform(1.5, 3.0), [(-INF, INF), (0.5, INF), (-INF, 2.0), (0.5, 2.0)]),
    "falling line": (td.AffineTransform(1.5, -0.25), [(-INF, INF), (0.5, INF), (-INF, 2.0), (0.5, 2.0)]),
    "cube": (td.PowerTransform(3.0), [(0.0, INF), (0.0, 2.0), (0.5, INF), (0.5, 2.0)]),
    "root": (td.PowerTransform(0.5), [(0.0, INF), (0.0, 2.0), (0.5, INF), (0.5, 2.0)]),
    "softplus": (SOFTPLUS, [(-INF, INF), (-1.0, INF), (-INF, 2.0), (-1.0, 2.0)]),
    "a law of one's own": (
        td.CumulativeDistributionTransform(td.Normal(torch.tensor(0.0).double(), 1.0)),
        [(-INF, INF), (-1.0, 2.0)],
    ),
}
CASES = [(name, ends) for name, (_, many) in LINES.items() for ends in many]


class Falling(td.Transform):
    """x = Φ(-y): as one's own transform may be, from the line down to the unit interval."""

    domain, codomain, bijective, sign = constraints.real, constraints.unit_interval, True, -1

    def _call(self, y):
        return torch.special.ndtr(-y)

    def _inverse(self, x):
        return -torch.special.ndtri(x)

    def log_abs_det_jacobian(self, y, x):
        return -0.5 * y * y - 0.5 * math.log(2.0 * math.pi)


def t(x):
    return torch.tensor(x, dtype=torch.float64)


def support(low, high):
    return Support(t(low), t(high), False)


def inside(low, high):
    """Points of an interval, some of them near its finite ends."""
    if math.isfinite(low) and math.isfinite(high):
        return low + (high - low) * t([0.001, 0.1, 0.4, 0.7, 0.95, 0.999])
    if math.isfinite(low):
        return low + t([0.001, 0.1, 0.5, 1.0, 1.7])
    if math.isfinite(high):
        return high - t([2.7, 1.0, 0.5, 0.1, 0.001])
    return t([-2.5, -1.0, -0.1, 0.0, 0.3, 2.0])


@pytest.mark.parametrize(("name", "ends"), CASES)
def test_a_place_comes_back_with_its_distances_and_the_slope(name, ends):
    transform, known = LINES[name][0], support(*ends)
    y = inside(*ends)
    x = transform(y)
    ahead = image(transform, known)
    assert ahead is not None
    slope = transform.log_abs_det_jacobian(y, x).expand(y.shape)
    found, log_slope = back(transform, known, place_of(x, ahead))
    # an end's distance of 1e-3 is the difference of two numbers of size 3: 1e-12
    assert found.x.tolist() == pytest.approx(y.tolist(), rel=1e-9, abs=1e-12)
    assert log_slope.expand(y.shape).tolist() == pytest.approx(slope.tolist(), rel=1e-9, abs=1e-9)
    above, below = (d.expand(y.shape).tolist() for d in (found.above, found.below))
    assert above == pytest.approx(torch.log(y - ends[0]).tolist(), abs=1e-9)
    assert below == pytest.approx(torch.log(ends[1] - y).tolist(), abs=1e-9)


@pytest.mark.parametrize(("name", "ends"), CASES)
def test_the_image_of_a_support_has_the_images_of_its_ends(name, ends):
    transform = LINES[name][0]
    found = image(transform, support(*ends))
    with mpmath.workdps(60):
        go = {
            "exp": mpmath.exp,
            "log": lambda y: mpmath.log(y) if y else -mpmath.inf,
            "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
            "logit": lambda y: -mpmath.inf if y == 0 else mpmath.inf if y == 1 else mpmath.log(y / (1 - y)),
            "tanh": mpmath.tanh,
            "atanh": lambda y: mpmath.sign(y) * mpmath.inf if abs(y) == 1 else mpmath.atanh(y),
            "rising line": lambda y: 1.5 + 3 * y,
            "falling line": lambda y: 1.5 - y / 4,
            "cube": lambda y: y**3,
            "root": mpmath.sqrt,
            "softplus": lambda y: y if y == mpmath.inf else mpmath.log1p(mpmath.exp(y)),
            "a law of one's own": mpmath.ncdf,
        }[name]
        low, high = sorted(float(go(mpmath.mpf(end))) for end in ends)
    assert (found.low.item(), found.high.item()) == pytest.approx((low, high), rel=1e-12)
    assert found.integers is False


@pytest.mark.parametrize("name", ["exp", "log", "sigmoid", "logit", "tanh", "atanh", "rising line", "softplus"])
def test_what_pytorch_brings_keeps_its_distances_on_the_way_back(name):
    assert is_exact(LINES[name][0])
    assert not is_exact(Falling())
    assert not is_exact(SOFTPLUS.inv)


@pytest.mark.parametrize("log_distance", [-5.0, -40.0, -1000.0, -1e5])
def test_a_distance_below_the_smallest_float_is_kept(log_distance):
    """Beside an end of the image, x is that end to the last digit, and only the logarithm of the distance tells."""
    gap, real = t(log_distance), support(-INF, INF)
    tiny = torch.exp(gap)
    with mpmath.workdps(60):
        e = mpmath.mpf(log_distance)
        d = mpmath.exp(e)
        if e > -500:  # beyond, d leaves the 60 digits of 1 - d: log(1 - d) = -d, log(2 - d) = log 2
            rest, two = float(mpmath.log1p(-d)), float(mpmath.log(2 - d))
            soft, steep = float(mpmath.log(mpmath.expm1(d))), float(mpmath.log(-mpmath.expm1(-d)))
        else:
            rest, two, soft, steep = 0.0, math.log(2.0), log_distance, log_distance
    near_low, near_high = Place(tiny, gap, t(rest)), Place(1.0 - tiny, t(rest), gap)
    found, slope = back(SIGMOID, real, near_low)
    assert (found.x.item(), slope.item()) == pytest.approx((log_distance - rest, log_distance + rest), rel=1e-12)
    found, slope = back(SIGMOID, real, near_high)
    assert (found.x.item(), slope.item()) == pytest.approx((rest - log_distance, log_distance + rest), rel=1e-12)
    found, slope = back(TANH, real, Place(tiny - 1.0, gap, t(two)))
    assert (found.x.item(), slope.item()) == pytest.approx((0.5 * (log_distance - two), log_distance + two), rel=1e-12)
    found, slope = back(EXP, real, Place(tiny, gap, t(INF)))
    assert (found.x.item(), slope.item()) == pytest.approx((log_distance, log_distance), rel=1e-12)
    found, slope = back(SOFTPLUS, real, Place(tiny, gap, t(INF)))
    assert (found.x.item(), slope.item()) == pytest.approx((soft, steep), rel=1e-12)
    found, slope = back(td.PowerTransform(2.0), support(0.0, INF), Place(tiny, gap, t(INF)))
    assert (found.above.item(), slope.item()) == pytest.approx((0.5 * log_distance, math.log(2) + 0.5 * log_distance))
    # of the inverses, x runs to an infinite end, and the distance of y is what underflows
    down, up = Place(gap, t(INF), t(INF)), Place(-gap, t(INF), t(INF))
    unit = support(0.0, 1.0)
    soft = float(mpmath.log1p(mpmath.exp(log_distance)))
    for at, side in ((down, "above"), (up, "below")):
        found, slope = back(SIGMOID.inv, unit, at)
        assert getattr(found, side).item() == pytest.approx(log_distance - soft, rel=1e-12)
        assert slope.item() == pytest.approx(2.0 * soft - log_distance, rel=1e-12)
        found, slope = back(TANH.inv, support(-1.0, 1.0), at)
        expected = math.log(2.0) + 2.0 * log_distance - math.log1p(math.exp(2.0 * log_distance))
        other = math.log(2.0) - math.log1p(math.exp(2.0 * log_distance))
        assert getattr(found, side).item() == pytest.approx(expected, rel=1e-12)
        assert slope.item() == pytest.approx(-(expected + other), rel=1e-12)
    found, slope = back(EXP.inv, support(0.0, INF), down)
    assert (found.above.item(), slope.item()) == pytest.approx((log_distance, -log_distance), rel=1e-12)


def test_a_transform_of_ones_own_is_measured_between_the_ends_of_its_codomain():
    """Both laws of Normals through Φ are uniform: KL to Beta(2, 2) is 2 - log 6, to Beta(2, 1) 1 - log 2."""
    law = LINES["a law of one's own"][0]
    normal = td.Normal(t(0.0), t(1.0))
    for transform in (law, Falling()):
        ends = image(transform, support(-INF, INF))
        assert (ends.low.item(), ends.high.item()) == (0.0, 1.0)
        uniform = td.TransformedDistribution(normal, [transform])
        assert kl(uniform, td.Beta(t(2.0), t(2.0))).item() == pytest.approx(2.0 - math.log(6.0), rel=1e-9)
        assert kl(uniform, td.Beta(t(2.0), t(1.0))).item() == pytest.approx(1.0 - math.log(2.0), rel=1e-9)
        # nearer to 0 than 1e-16, PyTorch's quantile of a Normal is -inf, and its density there NaN
        assert kl(td.Beta(t(2.0), t(1.0)), uniform).item() == pytest.approx(math.log(2.0) - 0.5, rel=1e-9)


def test_half_of_a_transform_of_ones_own():
    ends = image(Falling(), support(0.0, INF))
    assert (ends.low.item(), ends.high.item()) == (0.0, 0.5)
    ends = image(Falling(), support(-INF, 0.0))
    assert (ends.low.item(), ends.high.item()) == (0.5, 1.0)
    assert image(td.AbsTransform(), support(-1.0, 1.0)) is None
    assert image(td.StickBreakingTransform(), support(-1.0, 1.0)) is None
    half = Falling()
    half.codomain = constraints.real_vector
    assert image(half, support(-1.0, 1.0)) is None


def test_a_copy_in_float64_is_not_validated():
    """PyTorch's check of points is made in float32, and refuses those that a place puts beside an end."""
    d = td.ContinuousBernoulli(torch.tensor(0.3), validate_args=True)
    assert d._validate_args
    copied = doubled(d)
    assert copied.probs.dtype == torch.float64
    assert copied.log_prob(t(1.5)).isfinite()


def test_no_density_is_asked_outside_of_its_support():
    """Not even in the rows of a batch whose pieces lie elsewhere, where its gradient could be NaN."""

    def half_circle(center):
        def log_prob(x):
            assert bool(((x >= center - 1.0) & (x <= center + 1.0)).all())
            return math.log(2.0 / math.pi) + torch.log(torch.sqrt(1.0 - (x - center) ** 2))

        return Density(log_prob, (center.detach() - 1.0, center.detach() + 1.0), center.shape, center.detach())

    first, second = t([3.0, -3.5, 3.0]), t([3.5, -3.0, 3.0])
    found = kl(half_circle(first), td.Normal(t(0.0), t(1.0)))
    # the half circle has entropy log π - 1/2 and variance 1/4
    truth = 0.5 * (first**2 + 0.25) + 0.5 * math.log(2.0 * math.pi) - math.log(math.pi) + 0.5
    assert found.tolist() == pytest.approx(truth.tolist(), rel=1e-9)
    # integrated in 25 digits; in the second row the sides are the other way round; two Densities give float32
    assert js(half_circle(first), half_circle(second)).tolist() == pytest.approx(
        [0.1539365112639151878, 0.1539365112639151878, 0.0], rel=1e-7, abs=1e-15
    )


def test_a_distance_that_is_not_positive_counts_as_one():
    assert log_gap(t([-2.0, 0.0, 1.0, math.e])).tolist() == [0.0, 0.0, 0.0, 1.0]
