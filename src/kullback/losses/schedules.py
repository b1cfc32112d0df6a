"""Numbers that change while training: pure functions of the step, from 0."""

import math
from typing import Literal

from kullback._errors import FormError

from .inputs import integer, number, one_of, share

_SHARPNESS = 5.0  # of the exponential and logarithmic signal schedules, as in the paper


def linear(step: int, *, steps: int, start: float = 0.0, stop: float = 1.0) -> float:
    """From `start` at step 0 to `stop` at `steps`, and `stop` from there on.

    Source: the warm-up of Bowman et al. 2016, section 3.1 (KL annealing).

    >>> [linear(step, steps=4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    _check(step, steps)
    return start + (stop - start) * min(step / steps, 1.0)


def cyclical(step: int, *, steps: int, cycles: int = 4, ratio: float = 0.5, stop: float = 1.0) -> float:
    """`cycles` equal periods over `steps`; in each a linear rise from 0 for a share `ratio` of it, then `stop`.

    τ = (step mod ⌈steps/cycles⌉) / (steps/cycles); the weight is stop · min(τ/ratio, 1), and `stop` after `steps`.

    Source: Fu et al. 2019, arXiv 1903.10145, equations 6-7 (their steps count from 1).

    >>> [cyclical(step, steps=8, cycles=2) for step in range(9)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """
    _check(step, steps)
    if not (1 <= integer("cyclical", "cycles", cycles) <= steps):
        raise FormError(f"cyclical: cycles is {cycles}, but it must be from 1 to steps={steps}.")
    if share("cyclical", "ratio", ratio) == 0.0:
        raise FormError("cyclical: ratio is 0, so there is no rise. Write a number above 0, up to 1.")
    if step >= steps:
        return stop
    tau = (step % math.ceil(steps / cycles)) / (steps / cycles)
    return stop * min(tau / ratio, 1.0)


def training_signal(
    step: int, *, steps: int, num_classes: int, schedule: Literal["linear", "log", "exp"] = "linear"
) -> float:
    """UDA's training-signal annealing: labelled examples with a higher probability of their label are left out.

    η = a (1 - 1/K) + 1/K, with progress t = step/steps and a = t ("linear"), 1 - exp(-5t) ("log") or exp(5(t-1))
    ("exp").

    "exp" releases the signal late (few labels, easy overfitting), "log" early.

    Source: Xie et al. 2020, arXiv 1904.12848, section 2.2; google-research/uda, `text/uda.py`. After `steps` it stays
    at its last value.

    >>> [round(training_signal(step, steps=10, num_classes=2, schedule="exp"), 3) for step in (0, 5, 10)]
    [0.503, 0.541, 1.0]
    """
    _check(step, steps)
    one_of("training_signal", "schedule", schedule, ("linear", "log", "exp"))
    integer("training_signal", "num_classes", num_classes, at_least=1)
    t = min(step / steps, 1.0)
    released = {"linear": t, "log": 1.0 - math.exp(-_SHARPNESS * t), "exp": math.exp(_SHARPNESS * (t - 1.0))}[schedule]
    return released * (1.0 - 1.0 / num_classes) + 1.0 / num_classes


def _check(step: int, steps: int) -> None:
    if integer("schedule", "steps", steps) < 1:
        raise FormError(f"a schedule over steps={steps} has no steps; write the number of training steps, at least 1.")
    if not number("schedule", "step", step) >= 0:
        raise FormError(f"step is {step}, but steps count from 0.")
