"""Range and ANS (asymmetric numeral systems) coders, by constriction: a code as good as the model, to a few words."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kullback._errors import FormError
from kullback.kit.extras import extra

from .models import Adaptive, Fixed, Symbols, symbols

Method = Literal["range", "ans"]
Model = Fixed | Adaptive
SMALLEST = 2.0**-24  # the coder's own probabilities are multiples of it


@dataclass(frozen=True, eq=False)
class Coded:
    """Encoded data.

    Args: words: of 32 bits.  number: of symbols.  method: of coding.
    """

    words: npt.NDArray[np.uint32]
    number: int
    method: Method

    @property
    def bits(self) -> int:
        """What is stored: whole words."""
        return 32 * len(self.words)


def encode(data: Any, model: Model, method: Method = "range") -> Coded:
    """Data in the code of a model, -log₂ of its probability a symbol, and at most some words more.

    Args: data: bytes, or whole numbers 0 ... V-1.  model: `Fixed` or `Adaptive`.  method: "range" or "ans".
    Raises: FormError: data outside of the alphabet, or that the model gives no probability. MissingExtra.
    Source: Martin 1979 (range), Duda 2009 (ANS); Bamler 2022 (constriction).

    >>> coded = encode(b"abracadabra", Adaptive(256))
    >>> decode(coded, Adaptive(256)).astype("uint8").tobytes()
    b'abracadabra'
    """
    _check(method)
    values = symbols(data, model.size)
    _check_possible(values, model)
    stream, family = _library(method)
    blocks = model.rows(values)
    if method == "range":
        coder = stream.RangeEncoder()
        for start, rows in blocks:
            coder.encode(values[start : start + len(rows)], family, np.ascontiguousarray(rows))
    else:  # a stack: the last symbol goes in first
        coder = stream.AnsCoder()
        for start, rows in reversed(list(blocks)):
            coder.encode_reverse(values[start : start + len(rows)], family, np.ascontiguousarray(rows))
    return Coded(np.asarray(coder.get_compressed(), np.uint32), len(values), method)


def decode(coded: Coded, model: Model) -> Symbols:
    """The data again, by the same model."""
    stream, family = _library(coded.method)
    coder = (stream.RangeDecoder if coded.method == "range" else stream.AnsCoder)(coded.words)
    found = np.zeros(coded.number, np.int32)
    if isinstance(model, Fixed):
        for start, rows in model.rows(found):
            found[start : start + len(rows)] = coder.decode(family, np.ascontiguousarray(rows))
        return found
    counts = np.full(model.size, model.prior)
    for i in range(coded.number):
        found[i] = coder.decode(family, (counts / counts.sum())[None])[0]
        counts[found[i]] += 1.0
    return found


def _library(method: Method) -> tuple[Any, Any]:
    library = extra("constriction", of="code")
    stream = library.stream.queue if method == "range" else library.stream.stack
    return stream, library.stream.model.Categorical(perfect=False)


def _check(method: str) -> None:
    if method not in get_args(Method):
        raise FormError(f"coding: method is {method!r}; write 'range' or 'ans'.")


def _check_possible(values: Symbols, model: Model) -> None:
    """The coder would give what has no probability a little; that would hide an infinite divergence."""
    if isinstance(model, Fixed):
        zero = np.flatnonzero((model.probabilities == 0.0) & (np.bincount(values, minlength=model.size) > 0))
        if len(zero):
            raise FormError(
                f"coding: the data holds symbol {zero[0]}, to which the model gives probability 0: no code for it "
                "exists (KL is infinite). Count the model with a prior, such as 0.5."
            )
