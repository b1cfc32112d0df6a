"""Divergences by the names that commands give them."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm
from kullback.verbs import alpha, chi2, hellinger, jeffreys, js, kl, renyi, tv

Verb = Callable[[FiniteForm, FiniteForm], Tensor]


def reverse_kl(p: FiniteForm, q: FiniteForm, /) -> Tensor:
    """KL(q‖p): mode-seeking; infinite where the teacher p has no mass and the student q has."""
    return kl(q, p)


PLAIN: dict[str, Verb] = {
    "kl": kl,
    "reverse-kl": reverse_kl,
    "js": js,
    "jeffreys": jeffreys,
    "tv": tv,
    "hellinger": hellinger,
    "chi2": chi2,
}
WITH_ORDER: dict[str, Callable[..., Tensor]] = {"renyi": renyi, "alpha": alpha}
NEEDS_MASS_EVERYWHERE = ("reverse-kl", "jeffreys")  # infinite at p_v = 0 < q_v; so is alpha of order <= 0
DIVERGENCE_CHOICES = (*PLAIN, *(f"{name}:ORDER" for name in WITH_ORDER))


def parse_divergence(name: str) -> Verb:
    """The verb of two forms that a name on the command line means.

    Raises: BadInput, with the choices.

    >>> parse_divergence("renyi:0.5")
    functools.partial(<function renyi at ...>, order=0.5)
    """
    if name in PLAIN:
        return PLAIN[name]
    base, _, order = name.partition(":")
    if base in WITH_ORDER:
        number = _order(order)
        if number is None or (base == "renyi" and number < 0):
            raise BadInput(f"--divergence {name}: {base} needs its order, a number: write {base}:0.5, for example")
        return partial(WITH_ORDER[base], order=number)
    raise BadInput(f"--divergence {name!r} is unknown; choose one of {', '.join(DIVERGENCE_CHOICES)}")


def needs_mass_everywhere(divergence: str) -> bool:
    """Whether D(p‖q) is infinite when p has a zero and q has none."""
    base, _, order = divergence.partition(":")
    return base in NEEDS_MASS_EVERYWHERE or (base == "alpha" and (_order(order) or 0.0) <= 0.0)


def _order(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
