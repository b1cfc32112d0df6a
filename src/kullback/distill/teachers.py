"""Where the teacher's predictions come from: a network trained here, a scikit-learn classifier, or a file."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kullback import FormError, Logits, Probs
from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm
from kullback.kit.ending import near

from .data import Floats, Split, Table, read_frame
from .extras import extra
from .models import Scaling, count_parameters, network
from .settings import Settings, needs_mass_everywhere
from .training import HeldOut, steps_per_epoch, teacher_step, train

FILE_SUFFIXES = (".csv", ".parquet", ".pq", ".npy")
SUM_TOLERANCE = 1e-4  # a row that sums to one within it counts as probabilities, and is divided by its sum


@dataclass(frozen=True)
class Teacher:
    """What the teacher says of every row of the table, in its order; on the CPU."""

    said: FiniteForm
    description: str
    parameters: int | None
    seconds: float | None
    saw_train_labels: bool
    notes: tuple[str, ...] = ()


Prepared = Callable[[Callable[[], None]], Teacher]  # called with what to do after each unit of its work


def prepare(settings: Settings, table: Table, split: Split) -> tuple[Prepared, int]:
    """Check the teacher before anything is written or trained, and give back the work, with how many units it has.

    Raises: BadInput.
    """
    name = settings.teacher
    if name == "network":
        return lambda on_unit: _train_network(settings, table, split, on_unit), settings.teacher_epochs
    if Path(name).suffix.lower() in FILE_SUFFIXES or Path(name).is_file():
        teacher = _from_file(Path(name), table)
        _check_zeros(teacher.said, settings)
        return lambda on_unit: teacher, 0
    estimator = _classifier(name, settings.seed)

    def fit(on_unit: Callable[[], None]) -> Teacher:
        fitted = _fit_classifier(estimator, table, split)
        _check_zeros(fitted.said, settings)
        on_unit()
        return fitted

    return fit, 1


def _train_network(settings: Settings, table: Table, split: Split, on_unit: Callable[[], None]) -> Teacher:
    device = torch.device(settings.device)
    x = _standardised(table, split).float().to(device)
    y = torch.from_numpy(table.classes).to(device)
    widths = (x.shape[1], settings.teacher_hidden, settings.teacher_hidden, table.num_classes)
    model = network(widths, settings.seed).to(device)
    rows, held_out = torch.from_numpy(split.train).to(device), torch.from_numpy(split.held_out).to(device)
    trained = train(
        model,
        teacher_step(x[rows], y[rows], settings.batch_size),
        HeldOut(x[held_out], y[held_out]),
        epochs=settings.teacher_epochs,
        steps=steps_per_epoch(len(rows), settings.batch_size),
        learning_rate=1e-3,
        seed=settings.seed,
        on_epoch=on_unit,
    )
    with torch.no_grad():
        said = Logits(model(x).cpu())
    description = f"network {'-'.join(map(str, widths))}, trained here"
    return Teacher(said, description, count_parameters(model), trained.seconds, saw_train_labels=True)


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


def _fit_classifier(estimator: Any, table: Table, split: Split) -> Teacher:
    name = type(estimator).__name__
    x = _standardised(table, split).numpy()
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(x[split.train], table.classes[split.train])
            seconds = time.perf_counter() - start
            said = np.asarray(estimator.predict_proba(x), dtype=np.float64)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"--teacher {name} cannot learn {table.name} ({_one_line(error)}); name another") from None
    try:
        form = Probs(torch.from_numpy(said))
    except FormError as error:
        raise BadInput(f"--teacher {name} gives no probabilities here ({_one_line(error)}); name another one") from None
    notes = tuple(dict.fromkeys(f"{name}: {_one_line(warning.message)}" for warning in caught))
    return Teacher(form, f"scikit-learn {name}, trained here", None, seconds, saw_train_labels=True, notes=notes)


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
    return Teacher(said, f"file {path}, {rule}; {how}", None, None, saw_train_labels=False)


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


def _standardised(table: Table, split: Split) -> Tensor:
    return torch.from_numpy(Scaling.of(table.features[split.train])(table.features))


def _order(table: Table) -> str:
    names = table.class_names
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
