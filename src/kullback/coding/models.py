"""Models: what probability each symbol has when its turn comes."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lgamma, log
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kullback._errors import FormError

Floats: TypeAlias = npt.NDArray[np.float64]
Symbols: TypeAlias = npt.NDArray[np.int32]
_ROWS = 2048  # of probabilities made at once


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same probabilities for every symbol.

    Args: probabilities: (V,), that sum to one.
    Raises: FormError: they do not, or one is negative or no number.

    >>> Fixed([0.5, 0.25, 0.25]).ideal(np.array([0, 1, 1], np.int32))
    5.0
    """

    probabilities: Floats

    def __post_init__(self) -> None:
        values = np.asarray(self.probabilities, np.float64)
        if values.ndim != 1 or len(values) < 2 or not bool((values >= 0).all()) or abs(values.sum() - 1.0) > 1e-8:
            raise FormError(
                f"Fixed: needs two or more probabilities that sum to 1, and got {values.size} with the sum "
                f"{values.sum():.10g}. Write counts / counts.sum()."
            )
        object.__setattr__(self, "probabilities", values)

    @property
    def size(self) -> int:
        """V, of the alphabet 0 ... V-1."""
        return len(self.probabilities)

    def ideal(self, data: Symbols) -> float:
        """Σ -log₂ p(x) over the data, in bits: what a perfect coder needs."""
        counts = np.bincount(data, minlength=self.size)
        seen = counts > 0
        with np.errstate(divide="ignore"):
            return float(-(counts[seen] * np.log2(self.probabilities[seen])).sum())

    def rows(self, data: Symbols) -> Iterator[tuple[int, Floats]]:
        """(start, probabilities of symbols start ...) of the data, block by block."""
        for start in range(0, len(data), _ROWS):
            yield start, np.broadcast_to(self.probabilities, (len(data[start : start + _ROWS]), self.size))


@dataclass(frozen=True)
class Adaptive:
    """Counts that learn as they go: symbol a has probability (n_a + prior) / (n + V·prior) after n symbols.

    Args: size: V.  prior: 1/2 is Krichevsky & Trofimov's, within (V-1)/2·log₂ n + V bits of the best fixed code.
    Source: Krichevsky & Trofimov 1981.

    >>> round(2.0 ** -Adaptive(2).ideal(np.array([0, 0], np.int32)), 12)  # 1/2 · 3/4
    0.375
    """

    size: int
    prior: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 2 or not 0.0 < self.prior < np.inf:
            raise FormError(
                f"Adaptive: size is {self.size} and prior {self.prior:g}; write two symbols or more, and a prior above "
                "0, such as 0.5."
            )

    def ideal(self, data: Symbols) -> float:
        """Σ -log₂ of the probability each symbol had when its turn came, in bits; its order does not matter."""
        counts, prior, v = np.bincount(data, minlength=self.size), self.prior, self.size
        seen = sum(lgamma(n + prior) - lgamma(prior) for n in counts[counts > 0].tolist())
        return (lgamma(len(data) + v * prior) - lgamma(v * prior) - seen) / log(2.0)

    def rows(self, data: Symbols) -> Iterator[tuple[int, Floats]]:
        """(start, probabilities of symbols start ...) of the data, block by block."""
        counts = np.full(self.size, self.prior)
        for start in range(0, len(data), _ROWS):
            block = data[start : start + _ROWS]
            hot = np.zeros((len(block) + 1, self.size))
            hot[np.arange(1, len(block) + 1), block] = 1.0
            before = counts + hot.cumsum(0)
            yield start, before[:-1] / before[:-1].sum(1, keepdims=True)
            counts = before[-1]


def frequencies(data: Symbols, size: int, prior: float = 0.0) -> Fixed:
    """The shares of symbols in data, with `prior` added to each count.

    >>> frequencies(np.array([0, 0, 1, 2], np.int32), 3).probabilities.tolist()
    [0.5, 0.25, 0.25]
    """
    counts = np.bincount(data, minlength=size) + prior
    return Fixed(counts / counts.sum())


def symbols(data: Any, size: int) -> Symbols:
    """Data as symbols 0 ... size-1: bytes as they are, numbers checked. Raises: FormError."""
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.frombuffer(bytes(data), np.uint8)
    values = np.asarray(data)
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise FormError(
            f"coding: data has shape {values.shape} and dtype {values.dtype}; write bytes, or whole numbers in a row."
        )
    if len(values) and (values.min() < 0 or values.max() >= size):
        raise FormError(
            f"coding: data holds symbols from {values.min()} to {values.max()}, but the model has 0 to {size - 1}."
        )
    return values.astype(np.int32)
