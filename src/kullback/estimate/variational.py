"""Variational lower bounds and the classifier's density ratio: a small network learns log(p/q) from samples.

    Donsker-Varadhan   KL >= E_p T - log E_q e^T
    NWJ                KL >= E_p T - E_q e^(T-1)
    classifier         KL  = E_p logit + log(m/n), if the classifier is the best one

The critic T is fitted on one part of the samples, chosen on a second and evaluated on the third, so that overfitting
cannot make the bound. Source: Donsker & Varadhan 1983; Nguyen, Wainwright & Jordan 2010; Belghazi et al. 2018 (MINE);
Sugiyama, Suzuki & Kanamori 2012 for the ratio.
"""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.empirical import Samples

from .draws import permutation, source_of
from .result import Estimate
from .tails import pareto_shape

_SMALLEST = 50  # draws of each sample, below which there is nothing to fit and to hold out
_HEAVY = 0.25  # the tail shape of e^T from which on it has no fourth moment, and its own standard error none either
_EVERY = 50  # steps between looks at the validation part


@dataclass(frozen=True)
class _Critic:
    """What the three methods share: the network and its training.

    Args:
        hidden: widths of the hidden layers.
        steps: training steps at most; the critic with the best validation objective is kept.
        batch: draws of each sample a step.
        learning_rate: of Adam.
        held_out: the share of both samples that evaluates; a quarter of the rest chooses the critic.
    """

    hidden: tuple[int, ...] = (64, 64)
    steps: int = 2000
    batch: int = 256
    learning_rate: float = 2e-3
    held_out: float = 0.4

    bias: ClassVar[str]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not (self.steps >= 1 and self.batch >= 1 and self.learning_rate > 0 and all(h >= 1 for h in self.hidden)):
            raise FormError(f"{name}: steps, batch, learning_rate and hidden widths must be above 0; got {self}.")
        if not 0.0 < self.held_out < 1.0:
            raise FormError(f"{name}: held_out is {self.held_out!r}; write a share between 0 and 1.")

    def objective(self, on_p: Tensor, on_q: Tensor) -> Tensor:
        """What training maximises, from the critic's outputs at draws of p and of q."""
        raise NotImplementedError

    def evaluate(self, on_p: Tensor, on_q: Tensor) -> tuple[float, float]:
        """Value and standard error from the critic's outputs at held-out draws, float64."""
        raise NotImplementedError

    def estimate(self, p: Samples, q: Samples, generator: torch.Generator | None) -> Estimate:
        """See `kullback.estimate.kl`."""
        source = source_of(generator)
        x, y = p.data.cpu(), q.data.cpu()
        if x.shape[1] != y.shape[1]:
            raise FormError(
                f"estimate.kl: the draws of p have {x.shape[1]} columns but those of q have {y.shape[1]}. Write the "
                "same columns on both sides, such as Samples(x[:, :d])."
            )
        if min(len(x), len(y)) < _SMALLEST:
            raise FormError(
                f"estimate.kl: {type(self).__name__} fits a network and holds draws out, which needs {_SMALLEST} of "
                f"each; there are {len(x)} and {len(y)}. Write NearestNeighbours(k=1)."
            )
        (fit_x, choose_x, hold_x), (fit_y, choose_y, hold_y) = (self._parts(side, source) for side in (x, y))
        fitted = torch.cat([fit_x, fit_y])
        centre, scale = fitted.mean(0), fitted.std(0)
        scale = torch.where(scale > 0, scale, 1.0)

        def standard(side: Tensor) -> Tensor:
            return ((side - centre) / scale).float()

        critic = self._fit(standard(fit_x), standard(fit_y), standard(choose_x), standard(choose_y), source)
        with torch.no_grad():
            on_q = critic(standard(hold_y)).double()
            value, stderr = self.evaluate(critic(standard(hold_x)).double(), on_q)
        return Estimate(
            value,
            stderr,
            len(hold_x),
            bias=self.bias,
            method=self,
            m=len(hold_y),
            verdict=_verdict(value, pareto_shape(torch.exp(on_q - on_q.max())), len(hold_y)),
            covers="both" if isinstance(self, Classifier) else "lower",
        )

    def _parts(self, x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        order = permutation(len(x), source)
        held, chosen = round(self.held_out * len(x)), round(0.25 * (1.0 - self.held_out) * len(x))
        return x[order[held + chosen :]], x[order[held : held + chosen]], x[order[:held]]

    def _fit(self, x: Tensor, y: Tensor, choose_x: Tensor, choose_y: Tensor, source: torch.Generator) -> "_Network":
        seed = int(torch.randint(2**62, (1,), generator=source, device=source.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = _Network(x.shape[1], self.hidden)
        optimiser = torch.optim.Adam(critic.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        best, kept = -math.inf, copy.deepcopy(critic.state_dict())

        def some(side: Tensor) -> Tensor:
            return side[torch.randint(len(side), (self.batch,), generator=source, device=source.device).cpu()]

        for step in range(self.steps):
            if step % _EVERY == 0 or step == self.steps - 1:
                with torch.no_grad():
                    now = float(self.objective(critic(choose_x), critic(choose_y)))
                if now > best:
                    best, kept = now, copy.deepcopy(critic.state_dict())
            with torch.enable_grad():
                loss = -self.objective(critic(some(x)), critic(some(y)))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        critic.load_state_dict(kept)
        return critic


def _verdict(value: float, shape: float, m: int) -> str:
    if value > 0.8 * math.log(m):
        return f"near log(m) = {math.log(m):.3g}, above which m draws of q cannot show a divergence"
    if shape > _HEAVY:
        return (
            f"p/q under q has tails as heavy as a Pareto law of shape {shape:.2g}: the draws that matter may be missing"
        )
    return ""


@dataclass(frozen=True)
class DonskerVaradhanBound(_Critic):
    """The Donsker-Varadhan lower bound, tight at T = log(p/q) + c. Its arguments are those of the network's training.

    >>> from kullback import Samples, estimate
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, generator=g), torch.randn(1000, generator=g) + 1
    >>> found = estimate.kl(Samples(x), Samples(y), method=DonskerVaradhanBound(steps=100), generator=g)   # 0.5
    >>> 0.2 < found.value < 0.8
    True
    """

    bias = "lower bound, evaluated on held-out draws"

    def objective(self, on_p: Tensor, on_q: Tensor) -> Tensor:
        """E_p T - log E_q e^T."""
        return on_p.mean() - (torch.logsumexp(on_q, 0) - math.log(len(on_q)))

    def evaluate(self, on_p: Tensor, on_q: Tensor) -> tuple[float, float]:
        """The bound less the first-order upward bias of -log of a mean, Var(e^T)/(2 m E(e^T)²)."""
        weights = torch.softmax(on_q, 0) * len(on_q)  # e^T over its mean
        spread = float(weights.var()) / len(on_q)
        return float(self.objective(on_p, on_q)) - 0.5 * spread, math.sqrt(float(on_p.var()) / len(on_p) + spread)


@dataclass(frozen=True)
class NWJBound(_Critic):
    """The bound of Nguyen, Wainwright & Jordan, tight at T = 1 + log(p/q). Arguments as for `DonskerVaradhanBound`.

    >>> from kullback import Samples, estimate
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, generator=g), torch.randn(1000, generator=g) + 1
    >>> found = estimate.kl(Samples(x), Samples(y), method=NWJBound(steps=100), generator=g)   # 0.5
    >>> 0.2 < found.value < 0.8
    True
    """

    bias = "lower bound, evaluated on held-out draws"

    def objective(self, on_p: Tensor, on_q: Tensor) -> Tensor:
        """E_p T - E_q e^(T-1)."""
        return on_p.mean() - torch.exp(on_q - 1.0).mean()

    def evaluate(self, on_p: Tensor, on_q: Tensor) -> tuple[float, float]:
        """Unbiased for the bound."""
        weights = torch.exp(on_q - 1.0)
        spread = float(on_p.var()) / len(on_p) + float(weights.var()) / len(on_q)
        return float(on_p.mean() - weights.mean()), math.sqrt(spread)


@dataclass(frozen=True)
class Classifier(_Critic):
    """The density ratio of a classifier that tells draws of p from draws of q, in equal batches of both.

    >>> from kullback import Samples, estimate
    >>> g = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(1000, generator=g), torch.randn(1000, generator=g) + 1
    >>> found = estimate.kl(Samples(x), Samples(y), method=Classifier(steps=100), generator=g)   # 0.5
    >>> 0.2 < found.value < 0.8
    True
    """

    bias = "that of the fitted density ratio, either sign"

    def objective(self, on_p: Tensor, on_q: Tensor) -> Tensor:
        """The log-likelihood of the labels, both classes with equal weight."""
        return F.logsigmoid(on_p).mean() + F.logsigmoid(-on_q).mean()

    def evaluate(self, on_p: Tensor, on_q: Tensor) -> tuple[float, float]:
        """E_p logit; the standard error is that of an efficient estimate from so many draws of both."""
        ratio = torch.exp(on_q)
        return float(on_p.mean()), math.sqrt(float(on_p.var()) / len(on_p) + float(ratio.var()) / len(on_q))


class _Network(nn.Module):
    """A perceptron (N, d) -> (N,)."""

    def __init__(self, d: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = [d, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        last = nn.Linear(widths[-1], 1)
        nn.init.zeros_(last.weight)  # T = 0 at the start: both bounds begin at a finite value
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """T at each row."""
        return self.layers(x).squeeze(-1)  # type: ignore[no-any-return]
