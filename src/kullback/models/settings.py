"""What a comparison is asked to do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.language.loading import DTYPES

CONTEXT, BATCH, NOISE = 512, 4, 4096


@dataclass(frozen=True)
class Settings:
    """How two models are compared.

    Args:
        device: cpu, cuda, cuda:1, ...
        dtype: in which models are loaded from folders; None: as they are stored.
        context: tokens that a model reads at once; None: 512, or what all models can take, if that is less.
        batch_size: pieces of text that go through a model together.
        limit: tokens that are scored, at most.
        num_classes: how many rows of scores are tokens; None: as many as the tokenizer has.
        noise: tokens on which the reference is compared with itself; 0: none.
        noise_dtype: the reference in this dtype too, as one more noise floor.
        top_k: with `save_reference`: keep the k likeliest tokens in place of hidden states.
    """

    device: str = "cpu"
    dtype: str | None = None
    context: int | None = None
    batch_size: int = BATCH
    limit: int | None = None
    num_classes: int | None = None
    noise: int = NOISE
    noise_dtype: str | None = None
    save_reference: Path | None = None
    top_k: int | None = None
    llama_log: Path | None = None

    def check(self) -> None:
        """Raises: BadInput."""
        for name, least in (("batch_size", 1), ("context", 2), ("limit", 1), ("num_classes", 2), ("top_k", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BadInput(f"--{name.replace('_', '-')} is {value!r}; write a whole number, {least} or more")
        if self.noise < 0:
            raise BadInput(f"--noise is {self.noise}; write how many tokens the noise floor is measured on, or 0")
        for name in ("dtype", "noise_dtype"):
            value = getattr(self, name)
            if value is not None and value not in DTYPES:
                raise BadInput(f"--{name.replace('_', '-')} is {value!r}; write {', '.join(DTYPES)}")
        if self.top_k is not None and self.save_reference is None:
            raise BadInput("--top-k says what is stored of a reference; write --save-reference DIR too")
        if self.top_k is not None and self.saves_base_file:
            raise BadInput("--top-k: llama.cpp's base file holds all tokens; name a folder with --save-reference")
        if self.saves_base_file and self.context is not None and self.context < 3:
            raise BadInput("--context: chunks of llama.cpp's base file have 3 tokens or more")
        if self.llama_log is not None and not self.llama_log.is_file():
            raise BadInput(f"--llama-log {self.llama_log}: no such file")

    @property
    def saves_base_file(self) -> bool:
        """Whether the reference's run is kept in llama.cpp's format."""
        return self.save_reference is not None and self.save_reference.suffix == ".kld"

    def to_json(self) -> dict[str, Any]:
        return {name: str(x) if isinstance(x, Path) else x for name, x in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Settings":
        given = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        for name in ("save_reference", "llama_log"):
            given[name] = None if given.get(name) is None else Path(given[name])
        return cls(**given)
