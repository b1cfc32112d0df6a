"""The main job: split, teach, train three students over several seeds, measure, and keep it all in a run folder."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import kullback
from kullback import Logits, kl
from kullback.forms.finite import FiniteForm

from . import measures
from .data import Ints, Split, Table, choose_labelled, default_labels, digits, read_table, split_rows
from .errors import BadInput, extra
from .measures import Bin, Summary
from .models import WEIGHTS, Scaling, Student, count_parameters, network
from .run_folder import check_free, new_folder, write_bytes, write_json
from .settings import Settings, parse_divergence
from .teachers import Teacher, prepare
from .training import KINDS, Curve, HeldOut, Kind, Rows, steps_per_epoch, student_step, train

MEASURES = ("accuracy", "nll", "ece", "kl", "seconds")
Progress = Callable[[int, int, str], None]  # units done, units in all, what is being done


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
        seeds = _sweep_seeds(self.settings)
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


def run(settings: Settings, progress: Progress | None = None) -> Results:
    """Distil a teacher into a small student, and leave a run folder.

    Args:
        settings: see `Settings`.
        progress: called with (units done, units in all, what is being done).

    Returns:
        `Results`, complete.

    Raises:
        BadInput, MissingExtra: before anything is written.
        KeyboardInterrupt: the run folder then holds what was finished, and says that it is incomplete. The partial
            `Results` are the exception's only argument, if the run folder existed.
    """
    settings.check()
    check_free(settings.out)
    for module in ("polars", "safetensors.torch", "matplotlib", "jinja2"):
        extra(module)
    table = digits() if settings.data is None else read_table(settings.data, settings.target, settings.drop)
    if settings.data is None and (settings.target is not None or settings.drop):
        raise BadInput("--target and --drop name columns of a file; write kullback distill DATA --target COLUMN")
    split = split_rows(table, settings.test_size, settings.seed)
    labels = default_labels(table, split) if settings.labels is None else settings.labels
    labelled = choose_labelled(table, split, labels, settings.seed)
    teach, teacher_units = prepare(settings, table, split)
    started, clock = datetime.now().astimezone(), time.perf_counter()
    widths = (len(table.feature_names), settings.hidden, table.num_classes)
    parameters = count_parameters(network(widths, settings.seed))

    if settings.teacher != "network" and teacher_units:  # a classifier may turn out unfit: find out before writing
        taught = teach(lambda: None)
        teach, teacher_units = (lambda on_unit: taught), 0

    folder = new_folder(settings.out, started)
    results = Results(settings, folder, table, split, started, labelled, parameters)
    try:
        write_json(folder / "settings.json", settings.to_json())
        _save(results, clock)
        with _one_thread():
            _work(results, teach, _Units(teacher_units + _student_units(settings), progress), widths, clock)
        results.complete = True
        _save(results, clock)
    except KeyboardInterrupt as stop:
        _save(results, clock)
        raise KeyboardInterrupt(results) from stop
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more threads, and the numbers are then the same on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Units:
    """Counts epochs, and tells whoever shows progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress, self.what = 0, total, progress, ""

    def begin(self, what: str) -> None:
        self.what = what
        self._tell()

    def one(self) -> None:
        self.done += 1
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, self.what)


def _work(
    results: Results,
    teach: Callable[[Callable[[], None]], Teacher],
    units: _Units,
    widths: tuple[int, ...],
    clock: float,
) -> None:
    from .pictures import summary_picture
    from .report import render

    settings, table, split = results.settings, results.table, results.split
    units.begin("teacher")
    results.teacher = teacher = teach(units.one)
    said_held_out = _rows_of(teacher.said, split.held_out)
    labels = results.held_out_labels()
    results.teacher_measures = {
        "accuracy": measures.accuracy(said_held_out, labels),
        "nll": measures.negative_log_likelihood(said_held_out, labels),
        "ece": measures.calibration_error(said_held_out, labels),
        "train_accuracy": measures.accuracy(
            _rows_of(teacher.said, split.train), torch.from_numpy(table.classes[split.train])
        ),
    }
    _save(results, clock)

    scaling = Scaling.of(table.features[split.train])
    x = torch.from_numpy(scaling(table.features)).float()
    for seed in _seeds(settings):
        for kind in KINDS:
            units.begin(f"student from {_FROM[kind]}, seed {seed}")
            outcome, model = _student(results, kind, seed, settings, x, widths, units)
            results.outcomes.append(outcome)
            if kind == "both" and results.student is None:
                results.student = Student(model, widths, scaling, table.feature_names, table.class_names)
                write_bytes(results.folder / WEIGHTS, results.student.to_bytes())
                write_bytes(results.folder / "predictions.parquet", _predictions(results))
            _save(results, clock)
    for temperature in settings.sweep:
        if temperature == settings.temperature:
            continue
        for seed in _sweep_seeds(settings):
            units.begin(f"temperature {temperature:g}, seed {seed}")
            changed = replace(settings, temperature=temperature)
            results.sweep.append(_student(results, "both", seed, changed, x, widths, units)[0])
        _save(results, clock)
    units.begin("report")
    results.seconds = time.perf_counter() - clock
    write_bytes(results.folder / "summary.svg", summary_picture(results).encode())
    write_bytes(results.folder / "report.html", render(results).encode())


_FROM: dict[Kind, str] = {"labels": "labels", "teacher": "the teacher", "both": "both"}


def _student(
    results: Results,
    kind: Kind,
    seed: int,
    settings: Settings,
    x: torch.Tensor,
    widths: tuple[int, ...],
    units: _Units,
) -> tuple[Outcome, nn.Sequential]:
    """Train and measure one student; everything random in it comes from `seed`."""
    assert results.teacher is not None
    table, split, device = results.table, results.split, torch.device(settings.device)
    chosen = choose_labelled(table, split, len(results.labelled), seed)
    rows = Rows(
        train=x[split.train].to(device),
        teacher=_rows_of(results.teacher.said, split.train, device),
        labelled=torch.from_numpy(np.searchsorted(split.train, chosen)).to(device),
        labels=torch.from_numpy(table.classes[chosen]).to(device),
    )
    labels = results.held_out_labels()
    trained = train(
        network(widths, seed).to(device),
        student_step(kind, rows, settings, parse_divergence(settings.divergence)),
        HeldOut(x[split.held_out].to(device), labels.to(device)),
        epochs=settings.epochs,
        steps=steps_per_epoch(len(split.train), settings.batch_size),
        learning_rate=settings.learning_rate,
        seed=seed,
        on_epoch=units.one,
    )
    with torch.no_grad():
        said = Logits(trained.model(x[split.held_out].to(device)).cpu())
    teacher = _rows_of(results.teacher.said, split.held_out)
    outcome = Outcome(
        kind=kind,
        seed=seed,
        temperature=settings.temperature,
        accuracy=measures.accuracy(said, labels),
        nll=measures.negative_log_likelihood(said, labels),
        ece=measures.calibration_error(said, labels),
        kl=kl(teacher, said).double().mean().item(),
        seconds=trained.seconds,
        kl_per_class=tuple(measures.divergence_per_class(teacher, said, labels)),
        curve=trained.curve,
        said=said,
    )
    return outcome, trained.model


def kl_rows(results: Results, outcome: Outcome) -> torch.Tensor:
    """KL(teacher‖student) of each held-out row, in nats."""
    assert results.teacher is not None
    return kl(_rows_of(results.teacher.said, results.split.held_out), outcome.said).double()


def _predictions(results: Results) -> bytes:
    """predictions.parquet: every row of the data with its part, its class, and both sides' probabilities."""
    assert results.teacher is not None
    assert results.student is not None
    pl = extra("polars")
    table, names = results.table, np.asarray(results.table.class_names)
    part = np.full(table.num_rows, "train", dtype=object)
    part[results.split.held_out] = "held-out"
    teacher = measures.probabilities(results.teacher.said).numpy()
    student = results.student.predict_proba(table.features)
    columns: dict[str, Any] = {
        "row": np.arange(table.num_rows),
        "split": list(part),
        "label_seen_by_student": np.isin(np.arange(table.num_rows), results.labelled),
        "label": list(names[table.classes]),
    }
    for who, said in (("teacher", teacher), ("student", student)):
        columns |= {f"{who}_{name}": np.ascontiguousarray(said[:, c]) for c, name in enumerate(table.class_names)}
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def _save(results: Results, clock: float) -> None:
    if not results.complete or not results.seconds:
        results.seconds = time.perf_counter() - clock
    write_json(results.folder / "results.json", results.to_json())


def _rows_of(form: FiniteForm, index: Ints, device: torch.device | None = None) -> FiniteForm:
    """Some rows of the teacher's `Logits` or `Probs`, which were checked as a whole."""
    data = form.data[torch.from_numpy(index)].to(device or torch.device("cpu"))
    return Logits(data) if isinstance(form, Logits) else kullback.Probs(data, validate=False)


def _seeds(settings: Settings) -> range:
    return range(settings.seed, settings.seed + settings.seeds)


def _sweep_seeds(settings: Settings) -> range:
    return range(settings.seed, settings.seed + min(settings.sweep_seeds, settings.seeds))


def _student_units(settings: Settings) -> int:
    others = len({t for t in settings.sweep if t != settings.temperature})
    return settings.epochs * (len(KINDS) * settings.seeds + others * len(_sweep_seeds(settings)))


def _summary(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else asdict(summary)
