"""What a run finds: one outcome a student, and the document that they make together."""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kullback
from kullback import Logits, Probs, kl
from kullback.forms.finite import FiniteForm
from kullback.kit.numbers import Summary

from . import measures
from .data import Ints, Split, Table
from .measures import Bin
from .models import Student
from .settings import Settings
from .teachers import Teacher
from .training import KINDS, Curve, Kind

MEASURES = ("accuracy", "nll", "ece", "kl", "seconds")
PAIRS: tuple[tuple[Kind, Kind], ...] = (
    ("teacher only", "labels only"),
    ("both", "labels only"),
    ("both", "teacher only"),
)


@dataclass(frozen=True)
class Outcome:
    """One trained student on held-out rows; `nll` and `kl` (teacher‖student, both at temperature 1) in nats."""

    kind: Kind
    seed: int
    temperature: float
    accuracy: float
    nll: float
    ece: float
    kl: float
    seconds: float  # its share of the time of all that were trained with it
    kl_per_class: tuple[float, ...]
    bins: tuple[Bin, ...]
    curve: Curve
    said: FiniteForm | None = None  # of the held-out rows; kept of the first seed

    def to_state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "bins": [(b.place, b.count, b.confidence, b.accuracy) for b in self.bins],
            "curve": (self.curve.accuracy, self.curve.nll),
            "said": None if self.said is None else self.said.data,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Outcome":
        """The outcome that `to_state` described."""
        return cls(
            **state
            | {
                "bins": tuple(Bin(*b) for b in state["bins"]),
                "curve": Curve(*state["curve"]),
                "said": None if state["said"] is None else Logits(state["said"]),
            }
        )


@dataclass
class Results:
    """What a run found. It grows while the run goes on; `complete` says whether it came to its end."""

    settings: Settings  # with a number for every choice that was left open
    folder: Path
    table: Table
    split: Split
    started: datetime
    labelled: Ints  # training rows whose label the first seed's students saw
    student_parameters: int
    teacher: Teacher | None = None
    teacher_measures: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    sweep: list[Outcome] = field(default_factory=list)  # kind "both" at other temperatures
    student: Student | None = None  # "both", first seed: the one that is kept
    complete: bool = False
    seconds: float = 0.0

    def of(self, kind: Kind) -> list[Outcome]:
        """The finished students of a kind, by seed."""
        return [outcome for outcome in self.outcomes if outcome.kind == kind]

    def said(self, kind: Kind) -> FiniteForm:
        """Of the held-out rows, by the first seed's student."""
        said = self.of(kind)[0].said
        assert said is not None
        return said

    def finished(self) -> list[Kind]:
        """The kinds of which a student is finished."""
        return [kind for kind in KINDS if self.of(kind)]

    def kept(self) -> str:
        """What the run folder holds by now."""
        count = len(self.outcomes) + len(self.sweep)
        return f"{count} finished students" if count else "the teacher" if self.teacher else "what was begun"

    def summary(self, kind: Kind, measure: str) -> Summary | None:
        """Over the seeds that are finished; None if there is none."""
        values = [getattr(outcome, measure) for outcome in self.of(kind)]
        return Summary.of(values) if values else None

    def difference(self, kind: Kind, other: Kind, measure: str) -> Summary | None:
        """kind - other, paired by seed: same initialisation, same labelled rows."""
        first, second = ({o.seed: getattr(o, measure) for o in self.of(k)} for k in (kind, other))
        values = [first[seed] - second[seed] for seed in first if seed in second]
        return Summary.of(values) if values else None

    def by_temperature(self) -> dict[float, Summary]:
        """Held-out accuracy of the student that learns from both, at each temperature, over the sweep's seeds."""
        seeds = self.settings.sweep_seed_range()
        pool = [o for o in self.outcomes if o.kind == "both" and o.seed in seeds] + self.sweep
        temperatures = sorted({outcome.temperature for outcome in pool})
        return {t: Summary.of([o.accuracy for o in pool if o.temperature == t]) for t in temperatures}

    def reliability(self, kind: Kind) -> list[Bin]:
        """Bins over the held-out rows of all seeds together."""
        return measures.pooled([list(outcome.bins) for outcome in self.of(kind)])

    def held_out_labels(self) -> Tensor:
        """Classes of the held-out rows."""
        return torch.from_numpy(self.table.classes[self.split.held_out])

    def to_json(self) -> dict[str, Any]:
        """The document of results.json and of `--json`."""
        table, split, teacher = self.table, self.split, self.teacher
        students = {
            kind: {
                "finished_seeds": [outcome.seed for outcome in self.of(kind)],
                "parameters": self.student_parameters,
                **{measure: _summary(self.summary(kind, measure)) for measure in MEASURES},
                "kl_per_class": [
                    _summary(Summary.of([o.kl_per_class[c] for o in self.of(kind)])) for c in range(table.num_classes)
                ]
                if self.of(kind)
                else [],
                "curves": {
                    "accuracy": [outcome.curve.accuracy for outcome in self.of(kind)],
                    "nll": [outcome.curve.nll for outcome in self.of(kind)],
                },
            }
            for kind in KINDS
        }
        return {
            "status": "complete" if self.complete else "incomplete",
            "folder": str(self.folder),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "versions": versions(),
            "data": {
                "name": table.name,
                "rows": table.num_rows,
                "features": len(table.feature_names),
                "classes": list(table.class_names),
                "train_rows": len(split.train),
                "held_out_rows": len(split.held_out),
                "labelled_rows": len(self.labelled),
                "notes": list(table.notes),
            },
            "units": {
                "nll": "nats",
                "kl": "nats, KL(teacher‖student) at temperature 1",
                "seconds": "s of training, a student's share of those trained side by side",
            },
            "calibration_bins": measures.CALIBRATION_BINS,
            "teacher": teacher
            and {
                "description": teacher.description,
                "saw_labels": teacher.saw_labels,
                "parameters": teacher.parameters,
                "seconds": teacher.seconds,
                "notes": list(teacher.notes),
                **self.teacher_measures,
            },
            "students": students,
            "best_student": self.ranking()[0] if self.finished() else None,
            "differences": {
                f"{kind} - {other}": {m: _summary(self.difference(kind, other, m)) for m in MEASURES[:4]}
                for kind, other in PAIRS
            },
            "temperature_sweep": [
                {"temperature": t, "accuracy": asdict(summary)} for t, summary in self.by_temperature().items()
            ],
            "kept_student": f"both, seed {self.settings.seed}" if self.student else None,
        }

    def ranking(self) -> list[Kind]:
        """The kinds that are finished, by their mean held-out accuracy, best first."""
        means = {kind: summary.mean for kind in KINDS if (summary := self.summary(kind, "accuracy"))}
        return sorted(means, key=lambda kind: -means[kind])


def kl_rows(results: Results, kind: Kind) -> Tensor:
    """KL(teacher‖student) of each held-out row, in nats, of the first seed's student."""
    assert results.teacher is not None
    return kl(rows_of(results.teacher.said, results.split.held_out), results.said(kind)).double()


def rows_of(form: FiniteForm, index: Ints, device: torch.device | None = None) -> FiniteForm:
    """Some rows of the teacher's `Logits` or `Probs`, which were checked as a whole."""
    data = form.data[torch.from_numpy(index)].to(device or torch.device("cpu"))
    return Logits(data) if isinstance(form, Logits) else Probs(data, validate=False)


def versions() -> dict[str, str]:
    """What computes."""
    return {"kullback": kullback.__version__, "torch": str(torch.__version__)}


def _summary(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else asdict(summary)
