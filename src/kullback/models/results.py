"""What a comparison found: one document, which grows while it runs."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import kullback

from .clusters import LEVEL
from .plan import Plan
from .settings import Settings

COMPLETE, INTERRUPTED = "complete", "interrupted"


@dataclass
class Comparison:
    """A comparison and the folder that holds it: results.json, report.html, and tokens-NAME.parquet of every candidate.

    Args:
        measured: tokens that are scored so far.
        candidates: of each candidate by name, its statistics (docs/compare.md).
        noise_floor: the reference against itself, run otherwise.
        pairs: the candidates among each other, on the same tokens.
        complete: whether it came to its end.
    """

    folder: Path
    settings: Settings
    started: datetime
    plan: Plan
    measured: int = 0
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    noise_floor: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    llama_cpp: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0
    speed: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """A candidate's statistics."""
        return self.candidates[name]

    def tokens(self, name: str) -> Path:
        """The Parquet file of a candidate's tokens."""
        return self.folder / tokens_file(self.plan.names.index(name), name)

    def kept(self) -> str:
        """What the folder holds, in words."""
        return f"{self.measured:,} of {self.plan.survey.scored:,} tokens"

    def to_json(self) -> dict[str, Any]:
        """The document of results.json and of `--json`."""
        plan = self.plan
        return {
            "status": COMPLETE if self.complete else INTERRUPTED,
            "folder": str(self.folder),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "speed": self.speed,
            "versions": versions(),
            "settings": self.settings.to_json()
            | {"context": plan.context, "batch_size": plan.batch_size, "num_classes": plan.num_classes},
            "level": LEVEL,
            "unit": "nats",
            "text": {
                "source": plan.source,
                "documents": plan.survey.documents,
                "pieces": plan.survey.pieces,
                "tokens": plan.survey.tokens,
                "scored": plan.survey.scored,
                "measured": self.measured,
                "fingerprint": plan.survey.fingerprint,
                "beginning": plan.beginning,
            },
            "reference": {"name": plan.reference.name, "about": plan.reference.about},
            "candidates": [
                {"name": side.name, "about": side.about, "tokens": tokens_file(i, side.name)}
                | self.candidates.get(side.name, {})
                for i, side in enumerate(plan.candidates)
            ],
            "noise_floor": self.noise_floor,
            "pairs": self.pairs,
            "llama_cpp": self.llama_cpp,
            "notes": [*plan.notes, *self.notes],
        }


def tokens_file(index: int, name: str) -> str:
    """tokens-NAME.parquet, NAME as it may stand in a file's name."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[:80]
    return f"tokens-{index + 1}-{plain}.parquet"


def versions() -> dict[str, str]:
    """What computes."""
    from importlib.metadata import version

    return {"kullback": kullback.__version__, "torch": str(torch.__version__), "transformers": version("transformers")}
