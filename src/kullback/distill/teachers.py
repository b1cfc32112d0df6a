"""Where the teacher's predictions come from: a network trained here, a scikit-learn classifier, or a file."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback import FormError, Logits, Probs
from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm
from kullback.kit.ending import near
from kullback.losses.named import needs_mass_everywhere

from .data import Floats, Ints, Split, Table, read_frame, stratified
from .extras import extra
from .models import Scaling, Stack, count_parameters, parts, predict
from .settings import Settings
from .training import Kept, TeacherLesson, seconds_per_step, steps_per_epoch, train

FILE_SUFFIXES = (".csv", ".parquet", ".pq", ".npy")
SUM_TOLERANCE = 1e-4  # a row that sums to one within it counts as probabilities, and is divided by its sum
LEARNING_RATE = 1e-3
# classifiers whose time or memory grows faster than the rows: how many they learn from, unless --teacher-rows says
BOUNDED = {
    "GaussianProcessClassifier": 1_000,
    "KNeighborsClassifier": 10_000,
    "LabelPropagation": 5_000,
    "LabelSpreading": 5_000,
    "NuSVC": 10_000,
    "RadiusNeighborsClassifier": 10_000,
    "SVC": 10_000,
}


@dataclass(frozen=True)
class Teacher:
    """What the teacher says of every row of the table, in its order; on the CPU."""

    said: FiniteForm
    description: str
    parameters: int | None
    seconds: float | None
    saw_labels: int  # of how many training rows; 0 where that is not known
    notes: tuple[str, ...] = ()

    def to_state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "said"}
        return {**plain, "logits": isinstance(self.said, Logits), "data": self.said.data}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Teacher":
        """The teacher that `to_state` described."""
        logits, data = state.pop("logits"), state.pop("data")
        said = Logits(data) if logits else Probs(data, validate=False)
        return cls(said, **{**state, "notes": tuple(state["notes"])})


def prepare(settings: Settings, table: Table, split: Split) -> "NetworkTask | Callable[[], Teacher]":
    """Check the teacher before anything is written or trained: what will make it.

    Raises: BadInput. Calling what comes back for a classifier may do so too: it may turn out unfit.
    """
    name = settings.teacher
    if name == "network":
        return NetworkTask(settings, table, split, _rows_for(settings, table, split))
    if Path(name).suffix.lower() in FILE_SUFFIXES or Path(name).is_file():
        if settings.teacher_rows is not None:
            raise BadInput(f"--teacher-rows is for teachers that are trained here, but {name} is a file; leave it out")
        teacher = _from_file(Path(name), table)
        _check_zeros(teacher.said, settings)
        return lambda: teacher
    estimator, rows = _classifier(name, settings.seed), _rows_for(settings, table, split)

    def fit() -> Teacher:
        fitted = _fit_classifier(estimator, table, split, rows)
        _check_zeros(fitted.said, settings)
        return fitted

    return fit


class NetworkTask:
    """A network to be trained on the labels of these rows.

    Every method takes the standardised features of all rows of the table.
    """

    def __init__(self, settings: Settings, table: Table, split: Split, rows: Ints) -> None:
        assert settings.teacher_epochs is not None
        assert settings.batch_size is not None
        self.epochs, self.batch, self.seed = settings.teacher_epochs, settings.batch_size, settings.seed
        self.rows, self.table, self.device = rows, table, torch.device(settings.device)
        self.widths = (len(table.feature_names), *(settings.teacher_hidden,) * 2, table.num_classes)
        self.steps = steps_per_epoch(len(rows), self.batch)
        self.notes = _some_rows(rows, split)

    def seconds(self, scaled: Tensor) -> float:
        """About how long an epoch takes here."""
        return self.steps * seconds_per_step(self._stack(), self._lesson(scaled, self.rows[: self.batch]))

    def make(self, scaled: Tensor, on_epoch: Callable[[], None], kept: Kept) -> Teacher:
        """Train it, and hear what it says of all rows."""
        trained = train(
            self._stack(),
            self._lesson(scaled, self.rows),
            None,
            epochs=self.epochs,
            steps=self.steps,
            learning_rate=LEARNING_RATE,
            on_epoch=on_epoch,
            kept=kept,
        )
        model = trained.model.member(0)
        description = f"network {'-'.join(map(str, self.widths))}, trained here"
        said, size = Logits(predict(model, scaled)), count_parameters(model)
        return Teacher(said, description, size, trained.seconds, len(self.rows), self.notes)

    def _stack(self) -> Stack:
        return Stack(self.widths, [self.seed]).to(self.device)

    def _lesson(self, scaled: Tensor, rows: Ints) -> TeacherLesson:
        index = torch.from_numpy(rows)
        labels = torch.from_numpy(self.table.classes)[index]
        return TeacherLesson(scaled[index].to(self.device), labels.to(self.device), self.batch)


def _rows_for(settings: Settings, table: Table, split: Split) -> Ints:
    """The training rows that the teacher learns from: all, or a stratified share."""
    rows, bound = settings.teacher_rows, BOUNDED.get(settings.teacher)
    if rows is None:
        rows = len(split.train) if bound is None else min(bound, len(split.train))
    if rows > len(split.train) or rows < table.num_classes:
        raise BadInput(
            f"--teacher-rows is {rows}, but {table.name} has {table.num_classes} classes and {len(split.train)} "
            f"training rows; write a number from {table.num_classes} to {len(split.train)}"
        )
    if rows == len(split.train):
        return split.train
    return split.train[stratified(table.classes[split.train], rows, 0, np.random.default_rng([settings.seed, 2]))]


def _some_rows(rows: Ints, split: Split) -> tuple[str, ...]:
    many, of = len(rows), len(split.train)
    return () if many == of else (f"The teacher learned from {many:,} of the {of:,} training rows (--teacher-rows)",)


def _classifier(name: str, seed: int) -> Any:
    """A scikit-learn classifier with its defaults, seeded."""
    found = dict(extra("sklearn.utils").all_estimators(type_filter="classifier"))
    able = sorted(known for known, kind in found.items() if hasattr(kind, "predict_proba"))
    if name not in found:
        raise BadInput(
            f"--teacher {name!r} is neither 'network', nor a file ending in {', '.join(FILE_SUFFIXES)}, nor a "
            f"scikit-learn classifier; did you mean {near(name, ['network', *able])}?"
        )
    try:
        estimator = found[name]()
    except TypeError as error:
        raise BadInput(f"--teacher {name} cannot be made without arguments ({error}); name another one") from None
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    if not hasattr(estimator, "predict_proba"):
        raise BadInput(
            f"--teacher {name} has no predict_proba with its default settings; name another one, such as "
            "RandomForestClassifier or LogisticRegression"
        )
    return estimator


def _fit_classifier(estimator: Any, table: Table, split: Split, rows: Ints) -> Teacher:
    name = type(estimator).__name__
    scaling = Scaling.of(table.features, split.train)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(scaling(table.features[rows]), table.classes[rows])
            seconds = time.perf_counter() - start
            said = np.concatenate([estimator.predict_proba(scaling(part)) for part in parts(table.features)])
            said = said.astype(np.float64)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"--teacher {name} cannot learn {table.name} ({_one_line(error)}); name another") from None
    try:
        form = Probs(torch.from_numpy(said))
    except FormError as error:
        raise BadInput(f"--teacher {name} gives no probabilities here ({_one_line(error)}); name another one") from None
    notes = tuple(dict.fromkeys(f"{name}: {_one_line(warning.message)}" for warning in caught))
    return Teacher(
        form, f"scikit-learn {name}, trained here", None, seconds, len(rows), (*_some_rows(rows, split), *notes)
    )


def _from_file(path: Path, table: Table) -> Teacher:
    values, how = _read_matrix(path, table)
    expected = (table.num_rows, table.num_classes)
    if values.shape != expected:
        header = " (a CSV needs a header line)" if path.suffix.lower() == ".csv" else ""
        raise BadInput(
            f"--teacher {path}: has shape {values.shape}, but {table.name} has {expected[0]} rows and {expected[1]} "
            f"classes; write one row per data row and one column per class, in this order: {_order(table)}{header}"
        )
    if np.isnan(values).any() or (values == np.inf).any():
        row = int(np.argwhere(np.isnan(values) | (values == np.inf))[0, 0])
        raise BadInput(f"--teacher {path}: row {row} holds NaN or +inf; remove or repair it")
    sums = values.sum(-1)
    if (values >= 0).all() and (np.abs(sums - 1.0) <= SUM_TOLERANCE).all():
        said: FiniteForm = Probs(torch.from_numpy(values / sums[:, None]))
        rule = f"taken as probabilities: no entry is negative and each row sums to one within {SUM_TOLERANCE:g}"
    else:
        empty = np.flatnonzero((values == -np.inf).all(-1))
        if len(empty):
            raise BadInput(f"--teacher {path}: row {empty[0]} is -inf everywhere, which gives no class any mass")
        said = Logits(torch.from_numpy(values))
        row = int(np.flatnonzero((values < 0).any(-1) | ~(np.abs(sums - 1.0) <= SUM_TOLERANCE))[0])
        rule = f"taken as logits: row {row} has a negative entry or does not sum to one within {SUM_TOLERANCE:g}"
    return Teacher(said, f"file {path}, {rule}; {how}", None, None, 0)


def _read_matrix(path: Path, table: Table) -> tuple[Floats, str]:
    """The numbers, in the order of the table's classes, and how their columns were matched."""
    by_position = f"columns by position, as {_order(table)}"
    if path.suffix.lower() == ".npy":
        if not path.is_file():
            raise BadInput(f"--teacher {path}: no such file; check the path")
        try:
            values = np.load(path, allow_pickle=False)
            return np.asarray(values, dtype=np.float64), by_position
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise BadInput(f"--teacher {path}: cannot be read as an array of numbers ({_one_line(error)})") from None
    frame = read_frame(path)
    if len(frame.columns) == table.num_classes and set(frame.columns) == set(table.class_names):
        frame, by_position = frame.select(list(table.class_names)), "columns by their names, which are the classes"
    text = [name for name in frame.columns if not frame[name].dtype.is_numeric()]
    if text:
        raise BadInput(f"--teacher {path}: column {text[0]!r} is not numeric; keep one number per class and row")
    return frame.to_numpy().astype(np.float64), by_position


def _check_zeros(said: FiniteForm, settings: Settings) -> None:
    """A divergence that is +inf on every student would train nothing."""
    if not needs_mass_everywhere(settings.divergence):
        return
    zero = (said.data == (-np.inf if isinstance(said, Logits) else 0)).any(-1)
    if zero.any():
        raise BadInput(
            f"--divergence {settings.divergence} is infinite where the teacher has a probability of exactly zero, as "
            f"in {int(zero.sum())} rows here; choose kl, js, tv or hellinger, or another teacher"
        )


def _order(table: Table) -> str:
    names = table.class_names
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
