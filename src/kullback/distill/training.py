"""Training one network: the loop that teacher and students share, and what differs between the three students."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kullback import Logits
from kullback.forms.finite import FiniteForm
from kullback.losses import Distillation

from .measures import accuracy, negative_log_likelihood
from .settings import Settings, Verb

Kind = Literal["labels", "teacher", "both"]
KINDS: tuple[Kind, ...] = ("labels", "teacher", "both")
NO_LABEL = -100
WEIGHT_DECAY = 1e-4
FEWEST_STEPS = 16  # in an epoch, or small tables would hardly be trained on

Step = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class Rows:
    """Tensors on one device. `teacher` holds what the teacher says of every training row; no true label but those of
    `labelled` is in here, so a student cannot learn from the others by accident.
    """

    train: Tensor  # (N, F) float32
    teacher: FiniteForm  # N rows
    labelled: Tensor  # (L,) indices into `train`
    labels: Tensor  # (L,) their classes


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: looked at after each epoch for the curves; no choice depends on them."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Curve:
    """One number an epoch, on held-out rows."""

    accuracy: list[float]
    nll: list[float]


@dataclass(frozen=True)
class Trained:
    """A model at the end of its training, with its way there."""

    model: nn.Sequential
    curve: Curve
    seconds: float  # of training, without looking at held-out rows


def student_step(kind: Kind, rows: Rows, settings: Settings, divergence: Verb) -> Step:
    """One step's loss: `batch_size` rows for each kind, so that all three students have the same budget.

    labels: labelled rows. teacher: any training rows. both: half and half; the soft term takes all of them, the hard
    term those with a label.
    """
    weight = {"labels": 0.0, "teacher": 1.0, "both": settings.soft_weight}[kind]
    loss = Distillation(
        settings.temperature, soft_weight=weight, divergence=divergence, ignore_index=NO_LABEL, unlabelled="soft"
    )
    from_labelled = {"labels": settings.batch_size, "teacher": 0, "both": (settings.batch_size + 1) // 2}[kind]
    from_any = settings.batch_size - from_labelled
    form, said = type(rows.teacher), rows.teacher.data

    def step(model: nn.Module, generator: torch.Generator) -> Tensor:
        device = said.device
        picked = torch.randint(len(rows.labelled), (from_labelled,), generator=generator).to(device)
        free = torch.randint(len(said), (from_any,), generator=generator).to(device)
        index = torch.cat([rows.labelled[picked], free])
        labels = torch.cat([rows.labels[picked], torch.full_like(free, NO_LABEL)])
        # The rows were checked when the teacher was made.
        teacher = Logits(said[index]) if form is Logits else form(said[index], validate=False)  # type: ignore[call-arg]
        result: Tensor = loss(student=model(rows.train[index]), teacher=teacher, labels=labels)
        return result

    return step


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """As many as see every row once, and at least `FEWEST_STEPS`.

    >>> steps_per_epoch(1078, 64), steps_per_epoch(90, 64)
    (17, 16)
    """
    return max(FEWEST_STEPS, -(-num_rows // batch_size))


def teacher_step(features: Tensor, labels: Tensor, batch_size: int) -> Step:
    """One step's cross-entropy on rows that all have their label."""
    loss = Distillation(soft_weight=0.0)

    def step(model: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(features), (batch_size,), generator=generator).to(features.device)
        result: Tensor = loss(student=model(features[index]), labels=labels[index])
        return result

    return step


def train(
    model: nn.Sequential,
    step: Step,
    held_out: HeldOut,
    *,
    epochs: int,
    steps: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[], None],
) -> Trained:
    """Per epoch `steps` steps of AdamW, with a cosine from `learning_rate` to zero.

    The last epoch's weights are kept, whatever the curve says.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    curve, seconds = Curve([], []), 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            step(model, generator).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            said = Logits(model(held_out.features))
            _wait(held_out.features.device)
            seconds += time.perf_counter() - start
            curve.accuracy.append(accuracy(said, held_out.labels))
            curve.nll.append(negative_log_likelihood(said, held_out.labels))
        on_epoch()
    return Trained(model, curve, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
