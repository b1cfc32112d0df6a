"""Keeping a KL near a target: adaptive coefficients, early stopping, a trust region.

None of these holds tensors: they take the measured KL as a number.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from kullback._errors import FormError

from .inputs import integer, number, positive


class _Coefficient:
    """A coefficient that is always above 0, and its saved state."""

    coefficient: float

    def __init__(self, owner: str, coefficient: float, target: float, minimum: float, maximum: float) -> None:
        self.coefficient = positive(owner, "coefficient", coefficient)
        self.target = positive(owner, "target", target)
        self.minimum = positive(owner, "minimum", minimum)
        self.maximum = number(owner, "maximum", maximum)
        if not self.minimum <= self.coefficient <= self.maximum:
            raise FormError(
                f"{owner}: coefficient {coefficient} lies outside [minimum, maximum] = [{minimum}, {maximum}]."
            )

    def _set(self, coefficient: float) -> float:
        self.coefficient = min(max(coefficient, self.minimum), self.maximum)
        return self.coefficient

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: the coefficient. The settings belong to the code."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; a coefficient outside [minimum, maximum] is refused."""
        coefficient = state.get("coefficient")
        if not isinstance(coefficient, int | float) or not self.minimum <= coefficient <= self.maximum:
            raise FormError(
                f"{type(self).__name__}: the saved coefficient is {coefficient!r}, but it must lie in "
                f"[minimum, maximum] = [{self.minimum}, {self.maximum}]."
            )
        self.coefficient = float(coefficient)


class AdaptiveKL(_Coefficient):
    """Proportional control of the KL coefficient.

    e = clip(KL/target - 1, -clip, clip);  coefficient ← coefficient · (1 + e · steps/horizon)

    Args:
        coefficient: the first value, > 0.
        target: the KL to hold, > 0 (per episode or per token, as you measure it).
        horizon: how many steps it takes for a full error to act once.
        clip: bound of the relative error.
        minimum, maximum: bounds of the coefficient. The minimum is above 0: a product that reached 0 would stay there.

    `update(observed, steps)` returns the new coefficient. `observed` may be negative (k1 estimates are) or infinite,
    not NaN. `state_dict` and `load_state_dict` make it resume.

    Raises:
        FormError: settings not above 0, NaN, steps < 0, or clip·steps >= horizon, where the factor could reach 0.

    Where copies differ: none of the public ones checks its inputs; with horizon small against the batch the coefficient
    goes negative and rewards divergence.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2, whose code has horizon 10,000 episodes and clip 0.2.

    >>> controller = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    >>> controller.update(12.0, steps=500)
    0.202
    """

    def __init__(
        self,
        coefficient: float = 0.2,
        *,
        target: float = 6.0,
        horizon: float = 10_000,
        clip: float = 0.2,
        minimum: float = 1e-6,
        maximum: float = math.inf,
    ) -> None:
        super().__init__("AdaptiveKL", coefficient, target, minimum, maximum)
        self.horizon = positive("AdaptiveKL", "horizon", horizon)
        self.clip = positive("AdaptiveKL", "clip", clip)

    def update(self, observed: float | Tensor, steps: int = 1) -> float:
        """Move the coefficient after `steps` episodes (or samples) with mean KL `observed`; the new one."""
        value = _measured("AdaptiveKL", observed)
        if not steps >= 0:
            raise FormError(f"AdaptiveKL: steps is {steps}, but it counts the samples behind the observed KL.")
        if self.clip * steps >= self.horizon:
            raise FormError(
                f"AdaptiveKL: clip·steps = {self.clip * steps:g} is not below horizon = {self.horizon:g}, so one "
                f"update could take the coefficient to 0 or below. Write horizon above {self.clip * steps:g}."
            )
        error = min(max(value / self.target - 1.0, -self.clip), self.clip)
        return self._set(self.coefficient * (1.0 + error * steps / self.horizon))


class DoubleHalveKL(_Coefficient):
    """PPO's rule: double the coefficient when the KL is far above its target, halve it when far below.

    KL < target/tolerance: coefficient / factor.  KL > target·tolerance: coefficient · factor.

    Args:
        coefficient: the first value; it adapts quickly and hardly matters.
        target: the KL per update to aim at.
        tolerance, factor: above 1; 1.5 and 2 in the source, which finds the results not sensitive to them.
        minimum, maximum: bounds of the coefficient, so that it can always come back.

    Raises: FormError: settings out of range, a NaN KL.
    Source: Schulman et al. 2017, arXiv 1707.06347, section 4.

    >>> controller = DoubleHalveKL(1.0, target=0.01)
    >>> [controller.update(value) for value in (0.02, 0.012, 0.001)]
    [2.0, 2.0, 1.0]
    """

    def __init__(
        self,
        coefficient: float = 1.0,
        *,
        target: float = 0.01,
        tolerance: float = 1.5,
        factor: float = 2.0,
        minimum: float = 1e-6,
        maximum: float = 1e6,
    ) -> None:
        super().__init__("DoubleHalveKL", coefficient, target, minimum, maximum)
        self.tolerance = _above_one("DoubleHalveKL", "tolerance", tolerance)
        self.factor = _above_one("DoubleHalveKL", "factor", factor)

    def update(self, observed: float | Tensor) -> float:
        """Move the coefficient after an update whose mean KL was `observed`; the new one."""
        value = _measured("DoubleHalveKL", observed)
        if value < self.target / self.tolerance:
            return self._set(self.coefficient / self.factor)
        if value > self.target * self.tolerance:
            return self._set(self.coefficient * self.factor)
        return self.coefficient


class EarlyStop:
    """Stop the epochs of an update once the policy has moved too far: KL > tolerance · target.

    Args: target: KL > 0.  tolerance: how far above it, 1.5 in the source.
    Raises: FormError: settings out of range, a NaN KL.
    Source: Spinning Up (Achiam 2018), PPO: `if kl > 1.5 * target_kl: break`.

    >>> stop = EarlyStop(target=0.01)
    >>> stop(0.014), stop(0.016)
    (False, True)
    """

    def __init__(self, *, target: float = 0.01, tolerance: float = 1.5) -> None:
        self.target = positive("EarlyStop", "target", target)
        self.tolerance = positive("EarlyStop", "tolerance", tolerance)

    def __call__(self, observed: float | Tensor) -> bool:
        return _measured("EarlyStop", observed) > self.tolerance * self.target


class Step(NamedTuple):
    """An accepted step: the share of the full step that was taken, its KL, its improvement, the trials it took."""

    scale: float
    kl: float
    improvement: float
    trials: int


class TrustRegion:
    """A hard constraint: a step is taken only if its mean KL is at most `max_kl` and the objective improves.

    Args:
        max_kl: δ > 0.
        backtrack: in (0, 1), by which a refused step shrinks.
        trials: how many sizes `search` tries: 1, backtrack, backtrack², ...

    `allows(kl, improvement)` is the check. `search(evaluate)` tries the sizes, `evaluate(scale) -> (kl, improvement)`,
    and returns the first `Step` that is allowed or None: then keep the old parameters.

    Raises: FormError: settings out of range. NaN is not allowed as a step and never raises.
    Source: Schulman et al. 2015, arXiv 1502.05477, appendix C; δ = 0.01, backtrack 0.8 and 10 trials as in Spinning Up.

    >>> region = TrustRegion(max_kl=0.01, backtrack=0.5)
    >>> region.search(lambda scale: (0.03 * scale**2, scale))
    Step(scale=0.5, kl=0.0075, improvement=0.5, trials=2)
    """

    def __init__(self, *, max_kl: float = 0.01, backtrack: float = 0.8, trials: int = 10) -> None:
        self.max_kl = positive("TrustRegion", "max_kl", max_kl)
        if not 0.0 < number("TrustRegion", "backtrack", backtrack) < 1.0:
            raise FormError(
                f"TrustRegion: backtrack is {backtrack}, but a refused step shrinks by it: 0 < backtrack < 1."
            )
        self.backtrack = float(backtrack)
        self.trials = integer("TrustRegion", "trials", trials, at_least=1)

    def allows(self, kl: float | Tensor, improvement: float | Tensor = math.inf) -> bool:
        """Whether a step with this mean KL and this gain may be taken."""
        measured = _number("TrustRegion", kl, "kl"), _number("TrustRegion", improvement, "improvement")
        return measured[0] <= self.max_kl and measured[1] > 0.0

    def search(self, evaluate: Callable[[float], tuple[float | Tensor, float | Tensor]]) -> Step | None:
        """The largest tried step that is allowed, or None."""
        for trial in range(self.trials):
            scale = self.backtrack**trial
            kl, improvement = evaluate(scale)
            if self.allows(kl, improvement):
                return Step(scale, float(kl), float(improvement), trial + 1)
        return None


def _number(owner: str, observed: float | Tensor, name: str = "the observed KL") -> float:
    """A measured number, which may be a tensor of one element."""
    if isinstance(observed, Tensor):
        if observed.numel() != 1:
            raise FormError(
                f"{owner}: {name} has shape {tuple(observed.shape)}, but it is one number. Write its .mean()."
            )
        return float(observed.detach())
    return number(owner, name, observed)


def _measured(owner: str, observed: float | Tensor) -> float:
    value = _number(owner, observed)
    if math.isnan(value):
        raise FormError(
            f"{owner}: the observed KL is NaN. Look at the update that made it; kullback's verbs give none."
        )
    return value


def _above_one(owner: str, name: str, value: float) -> float:
    if not 1.0 < number(owner, name, value) < math.inf:
        raise FormError(f"{owner}: {name} is {value}, but it must be a finite number above 1.")
    return float(value)
