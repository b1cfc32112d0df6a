"""What a run finds, and the document that it makes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import kullback
from kullback.kit.extras import extra
from kullback.kit.numbers import Summary, finite

from .measures import LEVEL, Sums, exponential, number, pooled
from .settings import ARMS, Arm, Settings


@dataclass(frozen=True)
class Point:
    """Of a curve: after how many steps and scored tokens, held-out NLL and KL, and the loss on training text before."""

    step: int
    tokens: int
    loss: float
    kl: float
    train_loss: float | None


@dataclass(frozen=True)
class Outcome:
    """A trained student, and its sums over held-out documents once they are taken."""

    arm: Arm
    seed: int
    parameters: int
    seconds: float
    curve: Sequence[Point]
    sums: Sums | None = None


@dataclass
class Results:
    """What a run found. It grows while the run goes on; `complete` says whether it came to its end."""

    settings: Settings  # with a number for every choice that was left open
    folder: Path
    started: datetime
    data: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)  # name, parameters, where it comes from
    teacher_sums: Sums | None = None
    counts: npt.NDArray[np.int64] | None = None  # scored tokens of each held-out document
    outcomes: list[Outcome] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    def of(self, arm: Arm) -> list[Outcome]:
        """The finished students of a kind, by seed."""
        return [outcome for outcome in self.outcomes if outcome.arm == arm]

    def kept(self) -> str:
        """What the folder holds by now, in words."""
        many = len(self.outcomes)
        students = f"{many} finished student{'s' * (many > 1)}"
        return students if many else "the teacher" if self.teacher else "what was begun"

    def to_json(self) -> dict[str, Any]:
        """The document of results.json, of `--json`, and of the report."""
        return {
            "status": "complete" if self.complete else "incomplete",
            "folder": str(self.folder),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "versions": versions(),
            "settings": self.settings.to_json(),
            "seeds": list(self.settings.seed_range()),
            "notes": self.notes,
            "level": LEVEL,
            "units": {
                "perplexity": "exp of the mean nats a token",
                "kl": "nats a token, KL(teacher‖student) at temperature 1",
                "same_top": "share of the tokens where teacher and student hold the same one likeliest",
                "stderr": "clustered by document, for these students; seeds' beside it",
                "curve": "loss and kl: nats a token on the first held-out windows; train_loss: of the loss itself",
            },
            "data": self.data,
            "teacher": self._teacher(),
            "students": [self._students(arm) for arm in ARMS if self.of(arm)],
            "difference": self._difference(),
            "examples": self.examples,
        }

    def _teacher(self) -> dict[str, Any] | None:
        if not self.teacher:
            return None
        if self.teacher_sums is None or self.counts is None:
            return self.teacher
        return self.teacher | {"perplexity": exponential(pooled([self.teacher_sums.nll], self.counts))}

    def _students(self, arm: Arm) -> dict[str, Any]:
        found = self.of(arm)
        plain = {
            "name": arm,
            "seeds": [outcome.seed for outcome in found],
            "parameters": found[0].parameters,
            "steps": self.settings.steps,
            "seconds": Summary.of([outcome.seconds for outcome in found]).mean,
            "curve": [asdict(point) for point in found[0].curve],
            "curves": [[asdict(point) for point in outcome.curve] for outcome in found],
        }
        sums, counts = [outcome.sums for outcome in found if outcome.sums is not None], self.counts
        if counts is None or not sums:
            return plain
        tokens = counts.sum()
        perplexities = [float(np.exp(s.nll.sum() / tokens)) for s in sums]
        return plain | {
            "perplexity": exponential(pooled([s.nll for s in sums], counts)) | _seeds(perplexities),
            "kl": number(pooled([s.kl for s in sums], counts)) | _seeds([s.kl.sum() / tokens for s in sums]),
            "same_top": number(pooled([s.same_top for s in sums], counts))
            | _seeds([s.same_top.sum() / tokens for s in sums]),
        }

    def _difference(self) -> dict[str, Any] | None:
        """From the teacher less from labels alone, paired by document and seed."""
        taught, alone = ([outcome.sums for outcome in self.of(arm)] for arm in ARMS)
        if self.counts is None or not taught or len(taught) != len(alone):
            return None
        pairs = [(a, b) for a, b in zip(taught, alone, strict=True) if a is not None and b is not None]
        if not pairs:
            return None
        tokens = self.counts.sum()
        apart, nll = [a.kl - b.kl for a, b in pairs], [a.nll - b.nll for a, b in pairs]
        return {
            "kl": number(pooled(apart, self.counts)) | _seeds([x.sum() / tokens for x in apart]),
            "perplexity_ratio": exponential(pooled(nll, self.counts))
            | _seeds([float(np.exp(x.sum() / tokens)) for x in nll]),
        }


def versions() -> dict[str, str]:
    """What computes."""
    packages = ("transformers", "tokenizers", "accelerate")
    own = {"kullback": kullback.__version__, "torch": str(torch.__version__)}
    return own | {name: str(extra(name, of="lm").__version__) for name in packages}


def _seeds(values: Sequence[float]) -> dict[str, Any]:
    """Each seed's own number, and the standard error of their mean over seeds."""
    found = Summary.of([float(value) for value in values])
    spread = None if found.stderr is None else finite(found.stderr)
    return {"by_seed": [finite(value) for value in found.values], "stderr_over_seeds": spread}
