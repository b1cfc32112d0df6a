"""What P, Q and DATA of the command are: files, texts that Python ships, probabilities, draws."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kullback._errors import BadInput
from kullback.kit.ending import of_system
from kullback.kit.tables import is_number, shortened

from .coder import Model
from .models import Adaptive, Fixed, Symbols, frequencies

TEXTS = ("license", "this", "topics")
BYTES = 256


@dataclass(frozen=True)
class Numbers:
    """Probabilities, as they were written."""

    values: tuple[float, ...]


def given(text: str) -> bytes | Numbers:
    """A file's bytes, a text of Python's as bytes, or probabilities. Raises: BadInput."""
    parts = text.split(",")
    if len(parts) > 1 and all(map(is_number, parts)):
        return Numbers(tuple(map(float, parts)))
    if text.startswith("python:"):
        return shipped(text.removeprefix("python:"))
    try:
        return Path(text).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{of_system(error)}; write a file, python:NAME ({', '.join(TEXTS)}), probabilities such as 0.5,0.3,0.2, "
            "or kt"
        ) from None


def shipped(name: str) -> bytes:
    """A text that every Python has: its licence, the Zen, the topics of its help. Raises: BadInput."""
    if name == "this":
        with contextlib.redirect_stdout(io.StringIO()):
            import this

        return "".join(this.d.get(letter, letter) for letter in this.s).encode()
    if name == "topics":
        from pydoc_data.topics import topics

        return "\n".join(topics[key] for key in sorted(topics)).encode()
    if name == "license":
        path = Path(sys.modules["os"].__file__ or "").with_name("LICENSE.txt")
        if path.is_file():
            return path.read_bytes()
        raise BadInput(f"python:license: this Python has no {path}; write another text")
    raise BadInput(f"python:{shortened(name, 40)}: there is no such text; write one of {', '.join(TEXTS)}")


def model(text: str, size: int, prior: float) -> Model:
    """The model that P or Q names: kt, probabilities, or the shares of a text's bytes. Raises: BadInput."""
    if text == "kt":
        return Adaptive(size)
    found = given(text)
    if isinstance(found, Numbers):
        if len(found.values) != size:
            raise BadInput(f"{shortened(text, 40)}: has {len(found.values)} probabilities, but the other side {size}")
        return Fixed(np.array(found.values))
    if size != BYTES:
        raise BadInput(f"{shortened(text, 40)}: is a text of bytes, but the other side are {size} probabilities")
    if not found and prior == 0.0:
        raise BadInput(f"{shortened(text, 40)}: is empty; write --prior 0.5, or another text")
    return frequencies(np.frombuffer(found, np.uint8).astype(np.int32), BYTES, prior)


def alphabet(*texts: str) -> int:
    """How many symbols there are: as many as probabilities are written, else the bytes."""
    sizes = [len(found.values) for text in texts if text != "kt" and isinstance(found := given(text), Numbers)]
    return sizes[0] if sizes else BYTES


def data(text: str, size: int, p: Model, seed: int) -> Symbols:
    """The symbols to encode: a text's bytes; for other alphabets a file of whole numbers, or draw:N from P.

    Raises: BadInput.
    """
    if text.startswith("draw:"):
        number = text.removeprefix("draw:")
        if not number.isdecimal() or not isinstance(p, Fixed):
            raise BadInput(f"{shortened(text, 40)}: write draw:N, a whole number, and a P that is not kt")
        drawn = np.random.default_rng(seed).choice(size, int(number), p=p.probabilities / p.probabilities.sum())
        return drawn.astype(np.int32)
    found = given(text)
    if isinstance(found, Numbers):
        raise BadInput(f"{shortened(text, 40)}: are probabilities, and DATA is a file, python:NAME or draw:N")
    if size == BYTES:
        return np.frombuffer(found, np.uint8).astype(np.int32)
    try:
        return np.array(found.decode().split(), dtype=np.int32)
    except (UnicodeDecodeError, ValueError, OverflowError):
        raise BadInput(f"{shortened(text, 40)}: for {size} symbols, DATA holds numbers 0 to {size - 1}") from None
