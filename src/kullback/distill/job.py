"""The main job: split, teach, train three students over several seeds, measure, and keep it all in a run folder."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from kullback import Logits, kl
from kullback._errors import BadInput
from kullback.kit.files import check_free, new_folder, write_bytes, write_json

from . import measures
from .data import choose_labelled, default_labels, digits, read_table, split_rows
from .extras import extra
from .models import WEIGHTS, Scaling, Student, count_parameters, network
from .pictures import summary_picture
from .report import render
from .results import Outcome, Results, rows_of, sweep_seeds
from .settings import Settings, parse_divergence
from .teachers import Teacher, prepare
from .training import KINDS, HeldOut, Kind, Rows, steps_per_epoch, student_step, train

Progress = Callable[[int, int, str], None]  # units done, units in all, what is being done


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

    folder = new_folder(settings.out, started, "kullback-distill")
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
    settings, table, split = results.settings, results.table, results.split
    units.begin("teacher")
    results.teacher = teacher = teach(units.one)
    said_held_out = rows_of(teacher.said, split.held_out)
    labels = results.held_out_labels()
    results.teacher_measures = {
        "accuracy": measures.accuracy(said_held_out, labels),
        "nll": measures.negative_log_likelihood(said_held_out, labels),
        "ece": measures.calibration_error(said_held_out, labels),
        "train_accuracy": measures.accuracy(
            rows_of(teacher.said, split.train), torch.from_numpy(table.classes[split.train])
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
        for seed in sweep_seeds(settings):
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
        teacher=rows_of(results.teacher.said, split.train, device),
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
    teacher = rows_of(results.teacher.said, split.held_out)
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


def _seeds(settings: Settings) -> range:
    return range(settings.seed, settings.seed + settings.seeds)


def _student_units(settings: Settings) -> int:
    others = len({t for t in settings.sweep if t != settings.temperature})
    return settings.epochs * (len(KINDS) * settings.seeds + others * len(sweep_seeds(settings)))
