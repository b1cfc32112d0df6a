"""What a run does: every choice with its default, checked once."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.kit.devices import check_device
from kullback.losses.named import parse_divergence


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
        teacher_rows: how many training rows a teacher that is trained here learns from; None for all, and for a bounded
            number where the classifier's cost grows faster than its rows (see `teachers.BOUNDED`).
        labels: how many training rows keep their label for the student; None for ten per class, at most half of them.
        test_size: share of the rows held out.
        epochs: one epoch is as many steps as it takes to see the training rows once, and at least 16. None for 40, and
            fewer where there are many rows; see `filled_in`.
        batch_size: rows in each step; None for 64, and more where there are many rows.
        learning_rate: the peak, which falls to zero along a cosine.
        hidden, teacher_hidden: width of the student's one hidden layer, and of each of the teacher's two.
        teacher_epochs: epochs of the teacher network; None for 25, and fewer where there are many rows.
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
    teacher_rows: int | None = None
    labels: int | None = None
    test_size: float = 0.4
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 3e-3
    hidden: int = 32
    teacher_hidden: int = 512
    teacher_epochs: int | None = None
    seeds: int = 5
    seed: int = 0
    sweep: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    sweep_seeds: int = 3
    out: Path | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Refuse what cannot run, with the option to change."""
        counts = (
            "teacher_rows",
            "labels",
            "epochs",
            "batch_size",
            "hidden",
            "teacher_hidden",
            "teacher_epochs",
            "seeds",
        )
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{_option(name)} is {value}, but it must be at least 1")
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

    def filled_in(self, rows: int, labels: int) -> "Settings":
        """With a number for every choice that was left open, given N training rows.

        The batch is 2√N, down to a multiple of 64, at least 64. Up to N = 20,000 students have 40 epochs and the
        teacher 25; then these fall with 1/√N, to 20 and 6: from N = 320,000 on the cost is linear in the rows.

        >>> [(s.batch_size, s.epochs) for s in (Settings().filled_in(n, 100) for n in (1_078, 60_000, 600_000))]
        [(64, 40), (448, 23), (1536, 20)]
        """
        share = min(1.0, math.sqrt(20_000 / rows))
        return replace(
            self,
            labels=_or(self.labels, labels),
            batch_size=_or(self.batch_size, max(64, math.isqrt(4 * rows) // 64 * 64)),
            epochs=_or(self.epochs, round(40 * max(share, 0.5))),
            teacher_epochs=_or(self.teacher_epochs, round(25 * max(share, 0.25))),
        )

    def seed_range(self) -> range:
        """The seed of each student of a kind."""
        return range(self.seed, self.seed + self.seeds)

    def sweep_seed_range(self) -> range:
        """The seed of each student at another temperature."""
        return self.seed_range()[: self.sweep_seeds]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """The settings that `to_json` wrote.

        >>> Settings.from_json(Settings(data=Path("a.csv"), target="y").to_json()).data
        PosixPath('a.csv')
        """
        values: dict[str, Any] = {field.name: document[field.name] for field in fields(cls)}
        for name in ("data", "out"):
            values[name] = None if values[name] is None else Path(values[name])
        for name in ("drop", "sweep"):
            values[name] = tuple(values[name])
        return cls(**values)


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise BadInput(f"{name} is {value:g}, but it must be a number above 0")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
