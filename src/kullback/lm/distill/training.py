"""The training of one student: the Trainer of transformers with a teacher, and where it leaves how far it came."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback import Logits
from kullback.kit.extras import extra
from kullback.kit.files import write_json
from kullback.language import small
from kullback.language.loading import quiet
from kullback.language.windows import Window
from kullback.losses import Distillation
from kullback.losses.named import parse_divergence

from . import measures
from .material import Material, Ordered, collate
from .results import Point
from .settings import Arm, Settings

transformers: Any = extra("transformers", of="lm")

LOOKS = 10  # points of a curve
SAVES = 10  # checkpoints of a training
CURVE = "curve.json"  # written last: a folder that holds it holds a whole student


class Look:
    """The held-out tokens that curves look at, and what the teacher says there."""

    def __init__(self, material: Material) -> None:
        self.rows, self.classes = material.look(), material.classes
        self.parts: list[tuple[list[Window], Logits, Tensor]] = []
        for start in range(0, len(self.rows), 32):
            batch = self.rows[start : start + 32]
            self.parts.append((batch, *measures.scores(material.teacher.model, batch, material.classes)))

    def __call__(self, model: Any) -> tuple[float, float]:
        """Means of NLL and KL(teacher‖model)."""
        found = [
            measures.per_token(p, measures.scores(model, batch, self.classes)[0], tokens)[:2]
            for batch, p, tokens in self.parts
        ]
        nll, apart = (torch.cat(values).mean().item() for values in zip(*found, strict=True))
        return nll, apart


class _Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells how far a training is, looks at held-out text, and ends it where whoever started it has gone."""

    def __init__(self, material: Material, look: Look, on_step: Callable[[int, int], None], parent: int | None) -> None:
        self.material, self.look, self.on_step, self.parent = material, look, on_step, parent
        assert material.settings.steps is not None
        self.every = max(1, material.settings.steps // LOOKS)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.parent is not None:
            os.kill(self.parent, 0)
        if not state.is_world_process_zero:
            return
        self.on_step(state.global_step, state.max_steps)
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            nll, apart = self.look(getattr(model, "module", model))
            # the state is part of each checkpoint, and so are the points
            state.log_history.append({"step": state.global_step, "held_out_nll": nll, "held_out_kl": apart})


def train_student(
    material: Material,
    arm: Arm,
    seed: int,
    place: Path,
    *,
    home: Path | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    parent: int | None = None,
) -> None:
    """Train a student and keep it in `place`, which then holds a transformers folder and the curve.

    If it was begun before, it goes on from the last whole checkpoint, to the same weights.

    Args: parent: id of the process that waits for this one, where there is one.
    """
    began = time.perf_counter()
    settings, folder = material.settings, place / "checkpoints"
    before = last_checkpoint(folder, settings.ranks)
    student = material.student(seed, home)
    trainer = _trainer(material, arm, seed, student, folder)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(_Watch(material, Look(material), on_step, parent))
    with quiet():
        trainer.train(resume_from_checkpoint=None if before is None else str(before))
    if not trainer.is_world_process_zero():
        return
    small.save(trainer.accelerator.unwrap_model(trainer.model), material.teacher.tokenizer, place)
    seconds = time.perf_counter() - began
    points = _points(trainer.state.log_history, material)
    write_json(place / CURVE, {"seconds": seconds, "curve": [vars(point) for point in points]})


def curve_of(place: Path) -> tuple[float, list[Point]] | None:
    """(seconds, curve) of a student that is whole, or None."""
    path = place / CURVE
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return found["seconds"], [Point(**point) for point in found["curve"]]


def last_checkpoint(folder: Path, ranks: int) -> Path | None:
    """The latest one that was written to its end: the Trainer writes its state last, other ranks their random state."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if len(list(path.glob("rng_state*.pth"))) == ranks:
            whole.append(path)
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def loss_of(settings: Settings, arm: Arm, cached_at: float | None = None) -> Distillation:
    """The loss of a kind of student.

    Args: cached_at: the temperature at which a cache keeps the teacher.
    """
    if arm == "from labels alone":
        return Distillation(soft_weight=0.0)
    return Distillation(
        settings.temperature,
        teacher_temperature=1.0 if cached_at == settings.temperature else None,
        soft_weight=settings.soft_weight,
        divergence=parse_divergence(settings.divergence),
    )


def _trainer(material: Material, arm: Arm, seed: int, student: Any, folder: Path) -> Any:
    from kullback.integrations.transformers import DistillationTrainer

    s, cached = material.settings, material.cached if arm == "from the teacher" else None
    assert s.steps is not None
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=s.steps,
        per_device_train_batch_size=s.batch_size // s.ranks,
        learning_rate=s.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(small.WARM_UP * s.steps)),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=max(1, s.steps // LOOKS),
        save_strategy="steps",
        save_steps=max(1, s.steps // SAVES),
        save_total_limit=2,
        seed=seed,
        train_sampling_strategy="sequential",  # the order stands in `Ordered`, the same on any number of ranks
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=s.device == "cpu",
        dataloader_pin_memory=s.device != "cpu",
        ddp_backend="gloo" if s.device == "cpu" and s.ranks > 1 else None,
    )
    teacher: Any = _Silent(material.classes) if arm == "from labels alone" else material.teacher.model
    item: Callable[[int], dict[str, Any]] = lambda i: {"window": material.train[i]}  # noqa: E731
    collator: Callable[..., dict[str, Tensor]] = collate
    columns: tuple[str, ...] = ()
    if cached is not None:
        teacher, item, collator, columns = cached.cache, cached.item, cached.cache.collator(), cached.cache.columns
    return DistillationTrainer(
        student,
        arguments,
        data_collator=collator,
        train_dataset=Ordered(item, small.draw_order(len(material.train), s.steps * s.batch_size, seed)),
        teacher=teacher,
        teacher_columns=columns,
        loss=loss_of(s, arm, None if cached is None else cached.cache.temperature),
        fused=s.fused,
        num_classes=material.num_classes(student),
    )


class _Silent:
    """A teacher for the student that learns from labels alone: the loss gives it no weight, so it says nothing."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, inputs: dict[str, Tensor]) -> Logits:
        ids = inputs["input_ids"]
        return Logits(torch.zeros(1, 1, 1, device=ids.device).expand(*ids.shape, self.classes))


def _points(history: list[dict[str, Any]], material: Material) -> list[Point]:
    """The curve, of what the Trainer kept. Training losses are means since the entry before."""
    s = material.settings
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    per_window = sum(len(w.ids) - w.scored for w in material.train) / len(material.train)
    return [
        Point(
            entry["step"],
            round(entry["step"] * s.batch_size * per_window),
            entry["held_out_nll"],
            entry["held_out_kl"],
            losses.get(entry["step"]),
        )
        for entry in history
        if "held_out_nll" in entry
    ]
