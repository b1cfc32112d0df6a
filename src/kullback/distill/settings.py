"""What a run does: every choice with its default, checked once."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback import alpha, chi2, hellinger, jeffreys, js, kl, renyi, tv
from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm

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


@dataclass(frozen=True)
class Settings:
    """What to distil, how, and where to.

    Args:
        data: CSV or Parquet file of numeric features and a class column; None for scikit-learn's digits.
        target: the class column; needed with `data`.
        drop: columns to leave out.
        teacher: "network" (trained here), the name of a scikit-learn classifier with `predict_proba`, or a file of
            class probabilities or logits per row (CSV, Parquet, npy).
        divergence: D(teacher‖student) that the student minimises, one of `DIVERGENCE_CHOICES`.
        temperature: T > 0, which flattens both sides of the soft term.
        soft_weight: weight of the soft term in the student that learns from both.
        labels: how many training rows keep their label for the student; None for ten per class, at most half of them.
        test_size: share of the rows held out.
        epochs: one epoch is as many steps as it takes to see the training rows once, and at least 16.
        batch_size: rows in each step.
        learning_rate: the peak, which falls to zero along a cosine.
        hidden, teacher_hidden: width of the student's one hidden layer, and of each of the teacher's two.
        teacher_epochs: epochs of the teacher network.
        seeds: how many initialisations and choices of labelled rows each student is trained with.
        seed: where they start; the split and the teacher depend on it alone.
        sweep: temperatures of the accuracy-against-temperature plot; `temperature` is added.
        sweep_seeds: how many seeds each of them gets, at most `seeds`.
        out: run folder; None for kullback-distill-<date>-<time> in the current folder.
        device: where to train.

    Raises: BadInput from `check`.
    """

    data: Path | None = None
    target: str | None = None
    drop: tuple[str, ...] = ()
    teacher: str = "network"
    divergence: str = "kl"
    temperature: float = 2.0
    soft_weight: float = 0.5
    labels: int | None = None
    test_size: float = 0.4
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-3
    hidden: int = 32
    teacher_hidden: int = 512
    teacher_epochs: int = 25
    seeds: int = 5
    seed: int = 0
    sweep: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    sweep_seeds: int = 3
    out: Path | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Refuse what cannot run, with the option to change."""
        counts = ("epochs", "batch_size", "hidden", "teacher_hidden", "teacher_epochs", "seeds")
        for name in counts if self.labels is None else ("labels", *counts):
            if getattr(self, name) < 1:
                raise BadInput(f"{_option(name)} is {getattr(self, name)}, but it must be at least 1")
        for name in ("seed", "sweep_seeds"):
            if getattr(self, name) < 0:
                raise BadInput(f"{_option(name)} is {getattr(self, name)}, but it must be at least 0")
        for name in ("temperature", "learning_rate"):
            _positive(_option(name), getattr(self, name))
        for temperature in self.sweep:
            _positive("each temperature of --sweep", temperature)
        if not 0.0 < self.test_size < 1.0:
            raise BadInput(f"--test-size is {self.test_size:g}, but it is a share of the rows: write 0.4, for example")
        if not 0.0 < self.soft_weight < 1.0:
            raise BadInput(
                f"--soft-weight is {self.soft_weight:g}, but it mixes teacher and labels: write a number between 0 and "
                "1 (the students at 0 and at 1 are trained anyway)"
            )
        parse_divergence(self.divergence)
        check_device(self.device)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


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


def check_device(name: str) -> None:
    """Refuse a device that PyTorch cannot use here."""
    try:
        torch.zeros(1, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadInput(f"--device {name!r} cannot be used ({reason}); write --device cpu") from None


def _order(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise BadInput(f"{name} is {value:g}, but it must be a number above 0")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
