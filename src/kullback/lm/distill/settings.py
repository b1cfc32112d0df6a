"""What a run does: every choice with its default, checked once."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kullback._errors import BadInput
from kullback.kit.devices import check_device
from kullback.language import small
from kullback.losses.named import parse_divergence

Arm = Literal["from the teacher", "from labels alone"]
ARMS: tuple[Arm, ...] = ("from the teacher", "from labels alone")
TAILS = ("bucket", "even", "renormalize")
PATHS = ("teacher", "student", "text", "cache", "out")


@dataclass(frozen=True)
class Settings:
    """What to distil, how, and where to.

    Args:
        teacher: folder of a transformers model; None for a small one, trained here.
        text: file or folder of documents (see `language.documents`); None for Python's documentation strings.
        cache: folder of `kullback lm cache`, from which the student learns in place of the live teacher.
        tail: what a top-k cache says of the classes that it left out, one of `TAILS`.
        student: folder of a transformers model to begin with; None for a new, small one.
        hidden, layers, heads: size of a new student.
        divergence: D(teacher‖student) that the student minimises, one of `named.DIVERGENCE_CHOICES`.
        temperature: T > 0, which flattens both sides of the soft term.
        soft_weight: weight of the teacher, 1 - that of the labels, in the student that learns from the teacher.
        fused: go through hidden states, without logits of all positions; None for where possible.
        steps: of the optimiser, for each student; None for `DEFAULT_STEPS`, or as `epochs` say.
        epochs: how often each student sees the training text, in place of `steps`.
        batch_size: windows in a step, over all ranks.
        learning_rate: the peak, after a warm-up and before a cosine to zero.
        context: tokens in a window; None for 128, or fewer where the teacher takes no more.
        held_out: share of the documents that no model is trained on here.
        teacher_steps: of the teacher that is trained here.
        seeds: how many students of each kind; seeds: their initialisation and the order of the text.
        seed: where they start; the teacher depends on it alone.
        ranks: processes over which torchrun spreads the training of a student.
        out: run folder; None for kullback-lm-distill-<date>-<time> in the current folder.
        device: cpu, or cuda.

    Raises: BadInput from `check`.
    """

    teacher: Path | None = None
    text: Path | None = None
    cache: Path | None = None
    tail: str = "bucket"
    student: Path | None = None
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    divergence: str = "kl"
    temperature: float = 1.0
    soft_weight: float = 1.0
    fused: bool | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    learning_rate: float = 8e-3
    context: int | None = None
    held_out: float = small.HELD_OUT
    teacher_steps: int = small.STEPS
    seeds: int = 2
    seed: int = 0
    ranks: int = 1
    out: Path | None = None
    device: str = "cpu"

    def check(self) -> None:
        """Refuse what cannot run, with the option to change."""
        for name in ("hidden", "layers", "heads", "steps", "batch_size", "teacher_steps", "seeds", "ranks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{_option(name)} is {value}, but it must be at least 1")
        if self.seed < 0:
            raise BadInput(f"--seed is {self.seed}, but it must be at least 0")
        for name in ("temperature", "learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise BadInput(f"{_option(name)} is {value:g}, but it must be a number above 0")
        if not 0.0 < self.soft_weight <= 1.0:
            raise BadInput(
                f"--soft-weight is {self.soft_weight:g}, but it is the teacher's share: write a number above 0, at "
                "most 1 (the student from labels alone is trained anyway)"
            )
        if not 0.0 < self.held_out < 1.0:
            raise BadInput(
                f"--held-out is {self.held_out:g}, but it is a share of the documents: write 0.1, for example"
            )
        if self.context is not None and self.context < 2:
            raise BadInput(f"--context is {self.context}, but a token is predicted from at least one: write 128")
        if self.steps is not None and self.epochs is not None:
            raise BadInput("--steps and --epochs both say how long to train; leave one out")
        if self.batch_size % self.ranks:
            raise BadInput(
                f"--batch-size {self.batch_size} cannot be spread over {self.ranks} ranks evenly; write --batch-size "
                f"{-(-self.batch_size // self.ranks) * self.ranks}"
            )
        if self.hidden % (2 * self.heads):
            raise BadInput(
                f"--hidden {self.hidden} cannot be cut into {self.heads} heads of an even width; write --hidden "
                f"{-(-self.hidden // (2 * self.heads)) * 2 * self.heads}"
            )
        if self.tail not in TAILS:
            raise BadInput(f"--tail {self.tail!r} is unknown; choose one of {', '.join(TAILS)}")
        if self.cache is not None and self.teacher is None:
            raise BadInput(
                "--cache holds what a teacher said of the training text; the held-out text needs the teacher itself: "
                "write kullback lm distill TEACHER --cache FOLDER"
            )
        if self.student is not None and self.teacher is None:
            raise BadInput(
                "--student needs a teacher of its tokenizer: write kullback lm distill TEACHER --student FOLDER"
            )
        parse_divergence(self.divergence)
        check_device(self.device)

    def seed_range(self) -> range:
        """The seed of each student of a kind."""
        return range(self.seed, self.seed + self.seeds)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """The settings that `to_json` wrote.

        >>> Settings.from_json(Settings(text=Path("a.txt"), seeds=3).to_json()) == Settings(text=Path("a.txt"), seeds=3)
        True
        """
        values: dict[str, Any] = {field.name: document[field.name] for field in fields(cls)}
        for name in PATHS:
            values[name] = None if values[name] is None else Path(values[name])
        return cls(**values)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
