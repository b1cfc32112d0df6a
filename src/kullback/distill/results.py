"""What a run found: its students, how they did, and the document that says so."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import kullback
from kullback import Logits, kl
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
    seconds: float
    kl_per_class: tuple[float, ...]
    curve: Curve
    said: FiniteForm  # of the held-out rows


@dataclass
class Results:
    """What a run found. It grows while the run goes on; `complete` says whether it came to its end."""

    settings: Settings
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
        seeds = sweep_seeds(self.settings)
        pool = [o for o in self.outcomes if o.kind == "both" and o.seed in seeds] + self.sweep
        temperatures = sorted({outcome.temperature for outcome in pool})
        return {t: Summary.of([o.accuracy for o in pool if o.temperature == t]) for t in temperatures}

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
            "versions": {"kullback": kullback.__version__, "torch": torch.__version__},
            "data": {
                "name": table.name,
                "rows": table.num_rows,
                "features": len(table.feature_names),
                "classes": list(table.class_names),
                "train_rows": len(split.train),
                "held_out_rows": len(split.held_out),
                "labelled_rows": len(self.labelled),
            },
            "units": {"nll": "nats", "kl": "nats, KL(teacher‖student) at temperature 1", "seconds": "s of training"},
            "calibration_bins": measures.CALIBRATION_BINS,
            "teacher": teacher
            and {
                "description": teacher.description,
                "saw_train_labels": teacher.saw_train_labels,
                "parameters": teacher.parameters,
                "seconds": teacher.seconds,
                "notes": list(teacher.notes),
                **self.teacher_measures,
            },
            "students": students,
            "differences": {
                f"{kind} - labels": {m: _summary(self.difference(kind, "labels", m)) for m in MEASURES[:4]}
                for kind in ("teacher", "both")
            },
            "temperature_sweep": [
                {"temperature": t, "accuracy": asdict(summary)} for t, summary in self.by_temperature().items()
            ],
            "kept_student": f"both, seed {self.settings.seed}" if self.student else None,
        }

    def reliability(self, kind: Kind) -> list[Bin]:
        """Bins over the held-out rows of all seeds together."""
        said = torch.cat([o.said.data for o in self.of(kind)])
        return measures.reliability(Logits(said), self.held_out_labels().repeat(len(self.of(kind))))

    def held_out_labels(self) -> torch.Tensor:
        return torch.from_numpy(self.table.classes[self.split.held_out])


def kl_rows(results: Results, outcome: Outcome) -> torch.Tensor:
    """KL(teacher‖student) of each held-out row, in nats."""
    assert results.teacher is not None
    return kl(rows_of(results.teacher.said, results.split.held_out), outcome.said).double()


def rows_of(form: FiniteForm, index: Ints, device: torch.device | None = None) -> FiniteForm:
    """Some rows of the teacher's `Logits` or `Probs`, which were checked as a whole."""
    data = form.data[torch.from_numpy(index)].to(device or torch.device("cpu"))
    return Logits(data) if isinstance(form, Logits) else kullback.Probs(data, validate=False)


def sweep_seeds(settings: Settings) -> range:
    """The seeds that every temperature of the sweep gets."""
    return range(settings.seed, settings.seed + min(settings.sweep_seeds, settings.seeds))


def _summary(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else asdict(summary)
