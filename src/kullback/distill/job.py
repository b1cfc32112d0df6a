"""The main job: split, teach, train three students over several seeds, measure, and keep it all in a run folder."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback import Logits, kl
from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm
from kullback.kit.files import check_free, new_folder, write_bytes, write_json
from kullback.kit.threads import one_thread
from kullback.kit.unfinished import Unfinished, document
from kullback.kit.unfinished import begun as begun_as
from kullback.losses.named import parse_divergence

from . import measures
from .data import Table, choose_labelled, default_labels, digits, read_table, split_rows
from .extras import extra
from .models import WEIGHTS, Scaling, Stack, Student, count_parameters, load_student, network, predict
from .pictures import CURVE_ROWS, summary_picture
from .report import render
from .results import Outcome, Results, rows_of, versions
from .settings import Settings
from .teachers import NetworkTask, Teacher, prepare
from .training import KINDS, HeldOut, Kind, Rows, StudentLesson, seconds_per_step, steps_per_epoch, train

Progress = Callable[[int, int, str], None]  # work done, work in all, what is being done
Begun = Callable[[Results, str], None]  # what will grow, and what it will cost
SIDE_BY_SIDE = 8  # students that are trained together, at most
FROM: dict[Kind, str] = {"labels only": "labels", "teacher only": "the teacher", "both": "both"}


@dataclass(frozen=True)
class Group:
    """Students that are trained side by side: one kind, one temperature, some seeds."""

    kind: Kind
    temperature: float
    seeds: tuple[int, ...]
    sweep: bool

    @property
    def name(self) -> str:
        """For people."""
        first, last = self.seeds[0], self.seeds[-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        return (
            f"temperature {self.temperature:g}, {seeds}" if self.sweep else f"students from {FROM[self.kind]}, {seeds}"
        )

    @property
    def file(self) -> str:
        """For the file that keeps them."""
        return f"{self.kind}, T {self.temperature!r}, seeds {self.seeds[0]}-{self.seeds[-1]}{', sweep' * self.sweep}"


def run(settings: Settings, progress: Progress | None = None, begun: Begun | None = None) -> Results:
    """Distil a teacher into a small student, and leave a run folder.

    Args:
        settings: see `Settings`.
        progress: called with (work done, work in all, what is being done).
        begun: called once, when the run folder exists, with the `Results` that will grow and a sentence that says what
            will be trained and for about how long.

    Returns:
        `Results`, complete.

    Raises:
        BadInput, MissingExtra: before anything is written.
        KeyboardInterrupt, OSError (a file could not be written): the run folder then holds what was finished, says that
            it is incomplete, and `resume` goes on from there.
    """
    started, clock = datetime.now().astimezone(), time.perf_counter()
    settings.check()
    check_free(settings.out)
    _need_packages()
    if settings.data is None and (settings.target is not None or settings.drop):
        raise BadInput("--target and --drop name columns of a file; write kullback distill DATA --target COLUMN")
    _Work(progress).begin("reading the data")
    table = _table(settings)
    split = split_rows(table, settings.test_size, settings.seed)
    labels = default_labels(table, split) if settings.labels is None else settings.labels
    settings = settings.filled_in(len(split.train), labels)
    labelled = choose_labelled(table, split, labels, settings.seed)
    teacher = _early(prepare(settings, table, split), progress)
    folder = new_folder(settings.out, started, "kullback-distill")
    results = Results(settings, folder, table, split, started, labelled, _parameters(settings, table))
    unfinished = Unfinished(folder)
    about = {"started": started.isoformat(), "from": str(Path.cwd()), "versions": versions()}
    try:
        unfinished.save("run", {**about, "settings": settings.to_json(), "fingerprint": table.fingerprint()})
    except BaseException:
        unfinished.clear()
        raise
    return _go(_Job(results, teacher, unfinished, _Work(progress), clock), begun)


def resume(folder: Path, progress: Progress | None = None, begun: Begun | None = None) -> Results:
    """Go on with a run that was stopped, to the same results as if it had not been (but for the times).

    Args: folder: of the run.  progress, begun: as for `run`.
    Raises: BadInput: nothing to go on with, other data or other versions than at the start.  And as `run`.
    """
    clock = time.perf_counter()
    _need_packages()
    unfinished = Unfinished(folder)
    state = begun_as(folder, versions())
    settings = Settings.from_json(state["settings"])
    settings.check()
    _Work(progress).begin("reading the data")
    table = _table(settings, Path(state["from"]))
    if table.fingerprint() != state["fingerprint"]:
        raise BadInput(f"--resume {folder}: {table.name} has changed since it was begun; begin anew with another --out")
    split = split_rows(table, settings.test_size, settings.seed)
    assert settings.labels is not None
    labelled = choose_labelled(table, split, settings.labels, settings.seed)
    teacher: NetworkTask | Teacher
    if (kept := unfinished.load("teacher")) is not None:
        teacher = Teacher.from_state(kept)
    else:
        teacher = _early(prepare(_at(settings, Path(state["from"])), table, split), progress)
    started = datetime.fromisoformat(state["started"])
    results = Results(settings, folder, table, split, started, labelled, _parameters(settings, table))
    before = float(document(folder).get("seconds", 0.0))
    return _go(_Job(results, teacher, unfinished, _Work(progress), clock - before, whole=not document(folder)), begun)


class _Work:
    """Counts milliseconds of work, as they were estimated, and tells whoever shows progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.done, self.total, self.progress, self.what = 0.0, 0.0, progress, ""

    def begin(self, what: str) -> None:
        self.what = what
        self._tell()

    def add(self, milliseconds: float) -> None:
        self.done += milliseconds
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(round(self.done), max(1, round(self.total)), self.what)


@dataclass
class _Job:
    """A run at work."""

    results: Results
    teacher: NetworkTask | Teacher
    unfinished: Unfinished
    work: _Work
    clock: float  # when it would have begun, had it not been interrupted
    whole: bool = True  # whether `results` holds all that is kept: what was written before never shrinks

    def save(self) -> None:
        """results.json, as far as it goes."""
        if not self.whole:
            return
        self.results.seconds = time.perf_counter() - self.clock
        write_json(self.results.folder / "results.json", self.results.to_json())


def _go(job: _Job, begun: Begun | None) -> Results:
    results = job.results
    try:
        write_json(results.folder / "settings.json", results.settings.to_json())
        job.save()
        with one_thread():
            _work(job, begun)
        results.complete = True
        job.save()
    except (KeyboardInterrupt, OSError) as stop:
        results.complete = False
        with suppress(OSError):  # what was written before stands
            job.save()
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(results) from stop
        raise
    job.unfinished.clear()
    return results


def _work(job: _Job, begun: Begun | None) -> None:
    results, work = job.results, job.work
    settings, table, split = results.settings, results.table, results.split
    scaling = Scaling.of(table.features, split.train)
    scaled = scaling.tensor(table.features)
    train_x, held_out_x = (scaled[torch.from_numpy(index)] for index in (split.train, split.held_out))
    groups, device = list(_groups(settings)), torch.device(settings.device)
    kept = [group for group in groups if job.unfinished.has(group.file)]
    job.whole = job.whole or not (kept or job.unfinished.has("teacher"))
    cost = _Cost.of(job, groups, train_x, scaled)
    work.total = cost.total
    if begun is not None:
        begun(results, cost.sentence(results, groups))

    work.begin("teacher")
    results.teacher = teacher = _taught(job, scaled, lambda: work.add(cost.teacher_epoch))
    del scaled
    _measure_teacher(results)
    job.whole = job.whole or not kept
    job.save()

    train_x = train_x.to(device)
    said = rows_of(teacher.said, split.train, device)
    look = _curve_rows(results, held_out_x, device)
    for group in groups:
        work.begin(group.name)
        outcomes = _outcomes(job, group, train_x, said, held_out_x, look, scaling, partial(work.add, cost.epoch[group]))
        (results.sweep if group.sweep else results.outcomes).extend(outcomes)
        job.whole = job.whole or group == kept[-1]
        job.save()
    work.begin("report")
    results.seconds = time.perf_counter() - job.clock
    write_bytes(results.folder / "summary.svg", summary_picture(results).encode())
    write_bytes(results.folder / "report.html", render(results).encode())
    work.add(work.total - work.done)


def _groups(settings: Settings) -> Iterator[Group]:
    """In the order in which they are trained."""
    of_sweep = [t for t in dict.fromkeys(settings.sweep) if t != settings.temperature]
    for kind, temperature, seeds, sweep in (
        *((kind, settings.temperature, settings.seed_range(), False) for kind in KINDS),
        *(("both", temperature, settings.sweep_seed_range(), True) for temperature in of_sweep),
    ):
        for start in range(0, len(seeds), SIDE_BY_SIDE):
            yield Group(kind, temperature, tuple(seeds[start : start + SIDE_BY_SIDE]), sweep)


@dataclass(frozen=True)
class _Cost:
    """Milliseconds, by trying a few steps of everything that is still to be trained."""

    teacher_epoch: float
    teacher: float
    epoch: dict[Group, float]
    total: float

    @classmethod
    def of(cls, job: _Job, groups: list[Group], train_x: Tensor, scaled: Tensor) -> "_Cost":
        settings, table = job.results.settings, job.results.table
        task = job.teacher if isinstance(job.teacher, NetworkTask) else None
        teacher_epoch = 1e3 * task.seconds(scaled) if task else 0.0
        step: dict[tuple[Kind, int], float] = {}
        said = Logits(torch.zeros(len(train_x), table.num_classes, device=settings.device))
        todo = [group for group in groups if not job.unfinished.has(group.file)]
        for group in todo:
            if (group.kind, len(group.seeds)) not in step:
                lesson = _lesson(job.results, group, train_x.to(settings.device), said)
                stack = Stack(_widths(settings, table), group.seeds).to(settings.device)
                step[group.kind, len(group.seeds)] = seconds_per_step(stack, lesson)
        steps = _steps(job.results)
        epoch = {g: 1e3 * steps * step[g.kind, len(g.seeds)] if g in todo else 0.0 for g in groups}
        assert settings.epochs is not None
        students = settings.epochs * sum(epoch.values())
        teacher = teacher_epoch * task.epochs if task else 0.0
        return cls(teacher_epoch, teacher, epoch, teacher + students)

    def sentence(self, results: Results, groups: list[Group]) -> str:
        """For people."""
        settings, many = results.settings, sum(len(group.seeds) for group in groups)
        return (
            f"{len(results.split.train):,} training rows, {len(results.split.held_out):,} held out; {many} students of "
            f"{settings.epochs} epochs of {_steps(results):,} steps of {settings.batch_size:,} rows; about "
            f"{self.total / 1e3:.0f} s of training here, {self.teacher / 1e3:.0f} s of it for the teacher"
        )


def _outcomes(
    job: _Job,
    group: Group,
    train_x: Tensor,
    said: FiniteForm,
    held_out_x: Tensor,
    look: HeldOut,
    scaling: Scaling,
    on_epoch: Callable[[], None],
) -> list[Outcome]:
    """Train and measure the students of a group, or read what they were."""
    results, settings = job.results, job.results.settings
    kept = job.unfinished.load(group.file)
    if kept is not None:
        if group.kind == "both" and not group.sweep and settings.seed in group.seeds:
            results.student = load_student(results.folder)
        return [Outcome.from_state(state) for state in kept["outcomes"]]
    assert settings.epochs is not None
    progress = job.unfinished.training(group.file)
    trained = train(
        Stack(_widths(settings, results.table), group.seeds).to(settings.device),
        _lesson(results, group, train_x, said),
        look,
        epochs=settings.epochs,
        steps=_steps(results),
        learning_rate=settings.learning_rate,
        on_epoch=on_epoch,
        kept=progress,
    )
    outcomes = []
    for i, seed in enumerate(group.seeds):
        model = trained.model.member(i)
        first = seed == settings.seed and not group.sweep
        seconds = trained.seconds / len(group.seeds)
        student_said = Logits(predict(model, held_out_x))
        outcomes.append(_measured(results, group, seed, student_said, trained.curves[i], seconds, keep=first))
        if first and group.kind == "both":
            table = results.table
            results.student = Student(model.cpu(), _widths(settings, table), scaling, table.columns, table.class_names)
            write_bytes(results.folder / WEIGHTS, results.student.to_bytes())
            write_bytes(results.folder / "predictions.parquet", _predictions(results))
    job.unfinished.save(group.file, {"outcomes": [outcome.to_state() for outcome in outcomes]})
    progress.done()
    return outcomes


def _measured(
    results: Results, group: Group, seed: int, said: Logits, curve: Any, seconds: float, *, keep: bool
) -> Outcome:
    assert results.teacher is not None
    labels = results.held_out_labels()
    apart = kl(rows_of(results.teacher.said, results.split.held_out), said).double()
    bins = measures.reliability(said, labels)
    return Outcome(
        kind=group.kind,
        seed=seed,
        temperature=group.temperature,
        accuracy=measures.accuracy(said, labels),
        nll=measures.negative_log_likelihood(said, labels),
        ece=measures.gap(bins),
        kl=apart.mean().item(),
        seconds=seconds,
        kl_per_class=tuple(measures.mean_per_class(apart, labels, results.table.num_classes)),
        bins=tuple(bins),
        curve=curve,
        said=said if keep else None,
    )


def _lesson(results: Results, group: Group, train_x: Tensor, said: FiniteForm) -> StudentLesson:
    """What the students of a group learn from; each seed has labelled rows of its own."""
    settings, table, split = results.settings, results.table, results.split
    chosen = np.stack([choose_labelled(table, split, len(results.labelled), seed) for seed in group.seeds])
    rows = Rows(
        train=train_x,
        teacher=said,
        labelled=torch.from_numpy(np.searchsorted(split.train, chosen)).to(train_x.device),
        labels=torch.from_numpy(table.classes[chosen]).to(train_x.device),
    )
    changed = replace(settings, temperature=group.temperature)
    return StudentLesson(group.kind, rows, changed, parse_divergence(settings.divergence))


def _taught(job: _Job, scaled: Tensor, on_epoch: Callable[[], None]) -> Teacher:
    teacher, progress = job.teacher, job.unfinished.training("teacher")
    if isinstance(teacher, NetworkTask):
        teacher = teacher.make(scaled, on_epoch, progress)
    if not job.unfinished.has("teacher"):
        job.unfinished.save("teacher", teacher.to_state())
    progress.done()
    return teacher


def _early(made: NetworkTask | Callable[[], Teacher], progress: Progress | None) -> NetworkTask | Teacher:
    """A classifier may turn out unfit: find out before anything is written."""
    if isinstance(made, NetworkTask):
        return made
    _Work(progress).begin("teacher")
    with one_thread():
        return made()


def _measure_teacher(results: Results) -> None:
    assert results.teacher is not None
    said, split = results.teacher.said, results.split
    held_out, labels = rows_of(said, split.held_out), results.held_out_labels()
    results.teacher_measures = {
        "accuracy": measures.accuracy(held_out, labels),
        "nll": measures.negative_log_likelihood(held_out, labels),
        "ece": measures.calibration_error(held_out, labels),
        "train_accuracy": measures.accuracy(
            rows_of(said, split.train), torch.from_numpy(results.table.classes[split.train])
        ),
    }


def _curve_rows(results: Results, held_out_x: Tensor, device: torch.device) -> HeldOut:
    """The held-out rows for the curves: all, or as many as are looked at after every epoch without much cost."""
    count = len(held_out_x)
    index = np.arange(count)
    if count > CURVE_ROWS:
        index = np.sort(np.random.default_rng([results.settings.seed, 3]).permutation(count)[:CURVE_ROWS])
    rows = torch.from_numpy(index)
    return HeldOut(held_out_x[rows].to(device), results.held_out_labels()[rows].to(device))


def _predictions(results: Results) -> bytes:
    """predictions.parquet: every row of the data with its part, its class, and both sides' probabilities."""
    assert results.teacher is not None
    assert results.student is not None
    pl = extra("polars")
    table = results.table
    held_out, labelled = (np.zeros(table.num_rows, dtype=bool) for _ in range(2))
    held_out[results.split.held_out] = True
    labelled[results.labelled] = True
    teacher = measures.probabilities(results.teacher.said).numpy()
    student = results.student.predict_proba(table.features)
    columns: dict[str, Any] = {
        "row": np.arange(table.num_rows),
        "split": pl.Series(["train", "held-out"]).gather(held_out.astype(np.int64)),
        "label_seen_by_student": labelled,
        "label": pl.Series(table.class_names).gather(table.classes),
    }
    for who, said in (("teacher", teacher), ("student", student)):
        columns |= {f"{who}_{name}": np.ascontiguousarray(said[:, c]) for c, name in enumerate(table.class_names)}
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def _need_packages() -> None:
    for module in ("polars", "safetensors.torch", "matplotlib", "jinja2"):
        extra(module)


def _table(settings: Settings, home: Path | None = None) -> Table:
    """The rows; `home` is where relative paths start."""
    if settings.data is None:
        return digits()
    path = settings.data if home is None else home / settings.data
    return replace(read_table(path, settings.target, settings.drop), name=str(settings.data))


def _widths(settings: Settings, table: Table) -> tuple[int, ...]:
    return len(table.feature_names), settings.hidden, table.num_classes


def _parameters(settings: Settings, table: Table) -> int:
    return count_parameters(network(_widths(settings, table), settings.seed))


def _steps(results: Results) -> int:
    assert results.settings.batch_size is not None
    return steps_per_epoch(len(results.split.train), results.settings.batch_size)


def _at(settings: Settings, home: Path) -> Settings:
    """The same where the teacher is a file, named as seen from another folder."""
    file = home / settings.teacher
    return replace(settings, teacher=str(file)) if file.is_file() else settings
