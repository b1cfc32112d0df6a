"""Divergences from samples by a critic: variational lower bounds, as losses.

A critic v(x) is trained on draws of p ("real") and of q ("fake"); every objective below is a lower bound of a
divergence for any critic, and reaches it at the critic named in its docstring.

>>> import torch
>>> from kullback.losses import FGAN, fgan
>>> FGAN(fgan.js(0.5)).bound(real=torch.tensor([9.0]), fake=torch.tensor([-9.0]))  # a critic that tells all: log 2
tensor(0.6930)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kullback._errors import FormError

from .average import average
from .base import Loss
from .inputs import emptied, number, share, tensors, wide


@dataclass(frozen=True)
class Conjugate:
    """One f-divergence, as the two functions of the critic's raw output v that its bound needs.

    output      g(v): the activation that maps any number to the domain of f*, so that T = g(v)
    conjugate   f*(g(v)), composed, so that nothing over- or underflows on the way
    best        the v that reaches the divergence, as a function of log(p/q)
    estimates   what the bound bounds, in terms of kullback's verbs

    The functions of this module have names, so that a loss can be pickled.
    """

    name: str
    output: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    best: Callable[[Tensor], Tensor]
    estimates: str

    def __repr__(self) -> str:
        return f"<conjugate of {self.name}>"


def _same(v: Tensor) -> Tensor:
    return v


def _exp_of_less_one(v: Tensor) -> Tensor:
    return torch.exp(v - 1.0)


def _one_more(v: Tensor) -> Tensor:
    return v + 1.0


def _one_less(v: Tensor) -> Tensor:
    return v - 1.0


def _negative_exp(v: Tensor) -> Tensor:
    return -torch.exp(-v)


def _jeffreys_output(v: Tensor) -> Tensor:
    return v - torch.expm1(-v)


def _jeffreys_conjugate(v: Tensor) -> Tensor:
    return v + torch.expm1(v)


def _parabola(v: Tensor) -> Tensor:
    return v * v / 4.0 + v


def _twice_expm1(r: Tensor) -> Tensor:
    return 2.0 * torch.expm1(r)


def _half_expm1(v: Tensor) -> Tensor:
    return 0.5 * torch.expm1(v)


def _half_below_one(v: Tensor) -> Tensor:
    return -0.5 * torch.expm1(-v)


def _half(r: Tensor) -> Tensor:
    return r / 2.0


def _half_tanh(v: Tensor) -> Tensor:
    return torch.tanh(v) / 2.0


def _far(r: Tensor) -> Tensor:
    return torch.sign(r) * math.inf


def _log_sigmoid(v: Tensor) -> Tensor:
    return -F.softplus(-v)


def _softplus(v: Tensor) -> Tensor:
    return F.softplus(v)


KL = Conjugate("kl", _same, _exp_of_less_one, _one_more, "kl(p, q)")
REVERSE_KL = Conjugate("reverse_kl", _negative_exp, _one_less, _same, "kl(q, p)")
JEFFREYS = Conjugate("jeffreys", _jeffreys_output, _jeffreys_conjugate, _same, "jeffreys(p, q)")
CHI2 = Conjugate("chi2", _same, _parabola, _twice_expm1, "chi2(p, q)")
SQUARED_HELLINGER = Conjugate("squared_hellinger", _half_below_one, _half_expm1, _half, "hellinger(p, q) ** 2")
TV = Conjugate("tv", _half_tanh, _half_tanh, _far, "tv(p, q)")
GAN = Conjugate("gan", _log_sigmoid, _softplus, _same, "2 js(p, q) - log 4")


def js(weight: float = 0.5) -> Conjugate:
    """`js(p, q, weight=w)`; reached at v = log(p/q). f-GAN's own Jensen-Shannon is twice w = 1/2.

    With m = w e^v + 1 - w:  g = w (v - log m),  f*(g) = (1-w) log m.
    """
    w = share("fgan.js", "weight", weight)
    if w in (0.0, 1.0):
        raise FormError(f"fgan.js: weight is {w:g}, where the divergence is 0 for any p and q. Write 0 < weight < 1.")
    return Conjugate(
        f"js({w:g})", partial(_js_output, w=w), partial(_js_conjugate, w=w), _same, f"js(p, q, weight={w:g})"
    )


def _log_mixture(v: Tensor, w: float) -> Tensor:
    return F.softplus(v + math.log(w) - math.log1p(-w)) + math.log1p(-w)


def _js_output(v: Tensor, w: float) -> Tensor:
    return w * (v - _log_mixture(v, w))


def _js_conjugate(v: Tensor, w: float) -> Tensor:
    return (1.0 - w) * _log_mixture(v, w)


def alpha(order: float) -> Conjugate:
    """`alpha(p, q, order)`; reached at v = log(p/q): g = (e^((a-1)v) - 1)/(a-1), f*(g) = (e^(av) - 1)/a.

    Order 1 is KL(p‖q) and 0 is KL(q‖p), by their limits.
    """
    a = number("fgan.alpha", "order", order)
    if not math.isfinite(a):
        raise FormError(f"fgan.alpha: order is {order}, but it must be a finite number.")
    return Conjugate(f"alpha({a:g})", partial(_power, a=a - 1.0), partial(_power, a=a), _same, f"alpha(p, q, {a:g})")


def _power(v: Tensor, a: float) -> Tensor:
    """(e^(av) - 1)/a, and v at a = 0."""
    return v if a == 0.0 else torch.expm1(a * v) / a


class FGAN(Loss):
    """The f-GAN objective: minimise it over the critic; its negative is a lower bound of the divergence.

    L = E_q[ f*(g(v)) ] - E_p[ g(v) ]

    Args:
        divergence: a `Conjugate` of this module: `fgan.KL`, `fgan.JEFFREYS`, `fgan.js(0.1)`, `fgan.alpha(2.0)`, ...

    Call with keywords only:
        real: (...) the critic's raw output on draws of p. fake: (...) on draws of q.
        real_mask, fake_mask: bool, True keeps the draw; dropped ones may hold NaN.

    `bound(...)` takes the same arguments and returns the lower bound -L. `generator(fake=...)` is the generator's
    loss: -E_q[f*(g(v))], which it plays against L, or with saturating=False -E_q[g(v)], stronger while the critic wins.

    Returns: a scalar; a side with nothing kept counts as a zero connected to the graph.
    Raises: FormError: masks of another shape than their draws; real and fake may have different ones.

    Where copies differ: f-GAN's Jensen-Shannon is twice `js`, its squared Hellinger twice `hellinger` squared.

    Source: Nowozin, Cseke & Tomioka 2016, arXiv 1606.00709, equations 4-6 and table 6.

    >>> import torch
    >>> from kullback.losses import fgan
    >>> critic = FGAN(fgan.KL)
    >>> critic.bound(real=torch.tensor([1.0]), fake=torch.tensor([1.0]))  # a critic that sees no difference
    tensor(0.)
    """

    def __init__(self, divergence: Conjugate = KL) -> None:
        super().__init__()
        if not isinstance(divergence, Conjugate):
            raise FormError(
                f"FGAN: divergence is {divergence!r}, but its conjugate is needed. Write fgan.KL, fgan.js(0.5), "
                "fgan.alpha(2.0)."
            )
        self.divergence = divergence

    def forward(
        self, *, real: Tensor, fake: Tensor, real_mask: Tensor | None = None, fake_mask: Tensor | None = None
    ) -> Tensor:
        """The critic's loss; see the class."""
        return -self.bound(real=real, fake=fake, real_mask=real_mask, fake_mask=fake_mask)

    def bound(
        self, *, real: Tensor, fake: Tensor, real_mask: Tensor | None = None, fake_mask: Tensor | None = None
    ) -> Tensor:
        """The lower bound of the divergence, E_p[g(v)] - E_q[f*(g(v))]."""
        owner, c = type(self).__name__, self.divergence
        gain = _mean_of(owner, c.output, "real", real, real_mask)
        return gain - _mean_of(owner, c.conjugate, "fake", fake, fake_mask)

    def generator(self, *, fake: Tensor, fake_mask: Tensor | None = None, saturating: bool = True) -> Tensor:
        """The loss of the model that makes the fakes, for a critic held fixed."""
        function = self.divergence.conjugate if saturating else self.divergence.output
        return -_mean_of(type(self).__name__, function, "fake", fake, fake_mask)


class NWJ(FGAN):
    """The bound of Nguyen, Wainwright & Jordan: KL(p‖q) >= E_p[v] - E_q[e^(v-1)], reached at v = 1 + log(p/q).

    It is `FGAN(fgan.KL)`; minibatch gradients are unbiased, the variance grows like e^KL.

    Source: Nguyen, Wainwright & Jordan 2010, arXiv 0809.0853; named f-GAN KL and MINE-f elsewhere.

    >>> import torch
    >>> NWJ().bound(real=torch.tensor([2.0]), fake=torch.tensor([1.0]))
    tensor(1.)
    """

    def __init__(self) -> None:
        super().__init__(KL)


class DonskerVaradhan(Loss):
    """The Donsker-Varadhan bound: KL(p‖q) >= E_p[v] - log E_q[e^v], reached at v = log(p/q) + any constant.

    Args:
        moving_average: None differentiates the batch's own log E_q[e^v]: biased, because the log of a batch mean is not
            the mean of the log. A rate in (0, 1], for example 0.01, divides the gradient by a moving average of
            E_q[e^v] instead; the average is a buffer, saved with the module, and moves in training mode only.

    Call as `FGAN`: real, fake, real_mask, fake_mask by name; returns -bound; `bound(...)` the bound. The value shown is
    always the batch's own bound.

    Returns: a scalar; with a side of nothing kept that side counts as a zero connected to the graph.
    Raises: FormError: a rate outside (0, 1], masks of another shape than their draws.

    Source: Donsker & Varadhan 1983; Belghazi et al. 2018 (MINE), arXiv 1801.04062, equation 12 for the gradient.

    >>> import torch
    >>> DonskerVaradhan().bound(real=torch.tensor([3.0]), fake=torch.tensor([3.0, 3.0]))
    tensor(0.)
    """

    log_average: Tensor

    def __init__(self, *, moving_average: float | None = None) -> None:
        super().__init__()
        if moving_average is not None and not 0.0 < number("DonskerVaradhan", "moving_average", moving_average) <= 1.0:
            raise FormError(
                f"DonskerVaradhan: moving_average is {moving_average}, but it is a rate: above 0, up to 1, or None."
            )
        self.moving_average = moving_average
        self.register_buffer("log_average", torch.tensor(-math.inf, dtype=torch.float64))

    def forward(
        self, *, real: Tensor, fake: Tensor, real_mask: Tensor | None = None, fake_mask: Tensor | None = None
    ) -> Tensor:
        """The critic's loss; see the class."""
        return -self.bound(real=real, fake=fake, real_mask=real_mask, fake_mask=fake_mask)

    def bound(
        self, *, real: Tensor, fake: Tensor, real_mask: Tensor | None = None, fake_mask: Tensor | None = None
    ) -> Tensor:
        """The lower bound of KL(p‖q)."""
        keep = tensors("DonskerVaradhan", fake=fake).mask(fake_mask, "fake_mask")
        gain, fake = _mean_of("DonskerVaradhan", _same, "real", real, real_mask), wide(fake)
        if fake.numel() == 0:
            return gain - 0.0 * fake.sum()
        every = torch.ones_like(fake, dtype=torch.bool) if keep is None else keep
        count, empty = every.sum(), ~every.any()
        scores = torch.where(empty, 0.0 * emptied(fake, every), torch.where(every, fake, -math.inf)).reshape(-1)
        log_mean = torch.logsumexp(scores, 0) - torch.log(torch.where(empty, fake.numel(), count).to(scores.dtype))
        if self.moving_average is None:
            return gain - log_mean
        # the derivative of mean(e^v) / average, and the value of log mean(e^v)
        surrogate = torch.exp(log_mean - self._moved(log_mean.detach(), empty))
        return gain - log_mean.detach() - (surrogate - surrogate.detach())

    def _moved(self, log_mean: Tensor, empty: Tensor) -> Tensor:
        """The moving average of E_q[e^v], kept as its logarithm; the first batch starts it, an empty one leaves it."""
        rate = self.moving_average
        assert rate is not None
        now = log_mean.double()
        moved = torch.logaddexp(self.log_average + math.log1p(-rate), now + math.log(rate)) if rate < 1.0 else now
        moved = torch.where(self.log_average == -math.inf, now, moved)
        if self.training:
            self.log_average.copy_(torch.where(empty, self.log_average, moved))
        return moved.to(log_mean.dtype)


def _mean_of(owner: str, function: Callable[[Tensor], Tensor], name: str, v: Tensor, mask: Tensor | None) -> Tensor:
    keep = tensors(owner, **{name: v}).mask(mask, f"{name}_mask")
    return average(function(wide(emptied(v, keep))), mask=keep)
