"""Training networks side by side: the loop that teacher and students share, and what differs between the three
students."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kullback import Labels, Logits, cross_entropy
from kullback.forms.finite import FiniteForm
from kullback.losses import Distillation
from kullback.losses.named import Verb

from .models import Stack
from .settings import Settings

Kind = Literal["labels only", "teacher only", "both"]
KINDS: tuple[Kind, ...] = ("labels only", "teacher only", "both")
NO_LABEL = -100
WEIGHT_DECAY = 1e-4
FEWEST_STEPS = 16  # in an epoch, or small tables would hardly be trained on


@dataclass(frozen=True)
class Rows:
    """Tensors on one device. `teacher` holds what the teacher says of every training row; no true label but those of
    `labelled` is in here, so a student cannot learn from the others by accident. S students, one a seed.
    """

    train: Tensor  # (N, F) float32
    teacher: FiniteForm  # N rows
    labelled: Tensor  # (S, L) indices into `train`
    labels: Tensor  # (S, L) their classes


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
    """Networks at the end of their training, with their way there."""

    model: Stack
    curves: list[Curve]
    seconds: float  # of training all of them, without looking at held-out rows


class Lesson(Protocol):
    """What networks learn from: rows drawn by each of them, and the loss on these rows."""

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """What one network sees in `steps` steps: (steps, rows)."""

    def loss(self, model: Stack, drawn: Tensor) -> Tensor:
        """Σ over the networks of the loss of one step, drawn (S, rows): each has the gradient of its own loss."""


class Kept(Protocol):
    """Where a training that may be interrupted leaves how far it came."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: Callable[[], dict[str, Any]]) -> None: ...


class StudentLesson:
    """`batch_size` rows a step for each kind, so that all three students have the same budget.

    labels only: labelled rows. teacher only: any training rows. both: half and half; the soft term takes all of them,
    the hard term those with a label.
    """

    def __init__(self, kind: Kind, rows: Rows, settings: Settings, divergence: Verb) -> None:
        weight = {"labels only": 0.0, "teacher only": 1.0, "both": settings.soft_weight}[kind]
        self.criterion = Distillation(
            settings.temperature,
            soft_weight=weight,
            divergence=divergence,
            ignore_index=NO_LABEL,
            unlabelled="soft",
        )
        assert settings.batch_size is not None
        half = (settings.batch_size + 1) // 2
        self.from_labelled = {"labels only": settings.batch_size, "teacher only": 0, "both": half}[kind]
        self.from_any = settings.batch_size - self.from_labelled
        self.rows = rows

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """Places among the labelled rows, then among all training rows."""
        labelled, count = self.rows.labelled.shape[1], len(self.rows.train)
        return torch.cat(
            [
                torch.randint(labelled, (steps, self.from_labelled), generator=generator),
                torch.randint(count, (steps, self.from_any), generator=generator),
            ],
            -1,
        )

    def loss(self, model: Stack, drawn: Tensor) -> Tensor:
        """The mean over (S, rows) is the mean of the networks' means: all have as many rows, and as many labels."""
        rows, said = self.rows, self.rows.teacher.data
        picked, free = drawn[:, : self.from_labelled], drawn[:, self.from_labelled :]
        index = torch.cat([rows.labelled.gather(1, picked), free], -1)
        labels = torch.cat([rows.labels.gather(1, picked), torch.full_like(free, NO_LABEL)], -1)
        form = type(rows.teacher)  # its rows were checked when the teacher was made
        teacher = Logits(said[index]) if form is Logits else form(said[index], validate=False)  # type: ignore[call-arg]
        result: Tensor = self.criterion(student=model(rows.train[index]), teacher=teacher, labels=labels)
        return len(drawn) * result


class TeacherLesson:
    """Cross-entropy on rows that all have their label."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int) -> None:
        self.features, self.labels, self.batch_size = features, labels, batch_size
        self.criterion = Distillation(soft_weight=0.0)

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """Places among the rows."""
        return torch.randint(len(self.features), (steps, self.batch_size), generator=generator)

    def loss(self, model: Stack, drawn: Tensor) -> Tensor:
        """See `Lesson`."""
        result: Tensor = self.criterion(student=model(self.features[drawn]), labels=self.labels[drawn])
        return len(drawn) * result


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """As many as see every row once, and at least `FEWEST_STEPS`.

    >>> steps_per_epoch(1078, 64), steps_per_epoch(90, 64)
    (17, 16)
    """
    return max(FEWEST_STEPS, -(-num_rows // batch_size))


def train(
    model: Stack,
    lesson: Lesson,
    held_out: HeldOut | None,
    *,
    epochs: int,
    steps: int,
    learning_rate: float,
    on_epoch: Callable[[], None] = lambda: None,
    kept: Kept | None = None,
) -> Trained:
    """Per epoch `steps` steps of AdamW, with a cosine from `learning_rate` to zero.

    The last epoch's weights are the result, whatever the curves say; without `held_out` there are none. What a network
    draws depends on its own seed alone. With `kept`, the training goes on from the last epoch that was saved there, to
    the same weights.
    """
    loop = _Loop(model, lesson, epochs * steps, learning_rate)
    curves: list[Curve] = [Curve([], []) for _ in model.seeds]
    first, seconds = 0, 0.0
    before = kept.load() if kept else None
    if before is not None:
        first, seconds = before["epochs"], before["seconds"]
        curves = [Curve(list(accuracy), list(nll)) for accuracy, nll in before["curves"]]
        loop.load_state_dict(before["loop"])
        for _ in range(first):
            on_epoch()
    for epoch in range(first, epochs):
        start = time.perf_counter()
        loop.run(steps)
        _wait(model.weights[0].device)
        seconds += time.perf_counter() - start
        for curve, accuracy, nll in zip(curves, *_look(model, held_out), strict=True) if held_out else ():
            curve.accuracy.append(accuracy)
            curve.nll.append(nll)
        if kept and epoch + 1 < epochs:
            done, spent = epoch + 1, seconds
            kept.save(
                lambda done=done, spent=spent: {  # type: ignore[misc]
                    "epochs": done,
                    "seconds": spent,
                    "curves": [(curve.accuracy, curve.nll) for curve in curves],
                    "loop": loop.state_dict(),
                }
            )
        on_epoch()
    return Trained(model, curves, seconds)


def seconds_per_step(model: Stack, lesson: Lesson, repeats: int = 5) -> float:
    """What a step costs here and now, by trying a few on a model that is thrown away."""
    loop, taken = _Loop(model, lesson, repeats + 2, 0.0), []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        loop.run(1)
        _wait(model.weights[0].device)
        taken.append(time.perf_counter() - start)
    return sorted(taken[2:])[repeats // 2]


class _Loop:
    """Optimiser, learning rate and random draws: all that a training carries from one epoch to the next."""

    def __init__(self, model: Stack, lesson: Lesson, total: int, learning_rate: float) -> None:
        self.model, self.lesson, self.total, self.peak, self.step = model, lesson, total, learning_rate, 0
        fused = model.weights[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=fused)
        self.generators = [torch.Generator().manual_seed(seed) for seed in model.seeds]

    def run(self, steps: int) -> None:
        """The next `steps` steps."""
        drawn = torch.stack([self.lesson.draw(generator, steps) for generator in self.generators], 1)
        for each in drawn.to(self.model.weights[0].device):
            for group in self.optimizer.param_groups:
                group["lr"] = self.peak * (1.0 + math.cos(math.pi * self.step / self.total)) / 2
            self.optimizer.zero_grad()
            self.lesson.loss(self.model, each).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, its in zip(self.generators, state["generators"], strict=True):
            generator.set_state(its)
        self.step = state["step"]


@torch.no_grad()
def _look(model: Stack, held_out: HeldOut) -> tuple[Sequence[float], Sequence[float]]:
    """Accuracy and negative log-likelihood of each network."""
    many = len(model.seeds)
    said = Logits(model(held_out.features.expand(many, -1, -1)))
    labels = held_out.labels.expand(many, -1)
    right = (said.data.argmax(-1) == labels).double().mean(-1)
    nll = cross_entropy(Labels(labels, said.num_classes), said).double().mean(-1)
    return right.tolist(), nll.tolist()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
