"""The same data in the codes of two models; the difference beside n·KL."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kullback._errors import FormError
from kullback.forms.finite import Probs
from kullback.verbs import kl

from .coder import Coded, Method, Model, decode, encode
from .models import Fixed, Symbols, frequencies, symbols


@dataclass(frozen=True)
class Cost:
    """What data cost in one model's code.

    Args: bits: stored.  ideal: Σ -log₂ p(x).
    """

    bits: int
    ideal: float

    @property
    def overhead(self) -> float:
        """What the coder adds to the ideal: rounding to words, and probabilities in multiples of 2^-24."""
        return self.bits - self.ideal


@dataclass(frozen=True)
class Bill:
    """Real bits of the same data under p and under q.

    Args:
        number: n, of symbols.  size: V, of the alphabet.  method: of coding.
        p, q: their costs.
        predicted: n·KL(p‖q) in bits, from the models alone; None where one of them is adaptive.
        exact: n·(KL(d‖q) - KL(d‖p)), d the shares in the data: what these very data must cost more. It is `predicted`
            where p is d.
        same: whether both decode to the same data again.
    """

    number: int
    size: int
    method: Method
    p: Cost
    q: Cost
    predicted: float | None
    exact: float
    same: bool

    @property
    def extra(self) -> int:
        """Bits that q's code needs beyond p's."""
        return self.q.bits - self.p.bits


def bill(p: Model, q: Model, data: Any, method: Method = "range") -> Bill:
    """Encode data with the codes of p and of q, decode both, and compare the extra bits with n·KL(p‖q).

    Args: p: the reference.  q: what is taken for it.  data: bytes, or whole numbers 0 ... V-1.
    Raises: FormError: models over different alphabets; data that a model cannot hold. MissingExtra.
    Source: Cover & Thomas 2006, theorem 5.4.3.

    >>> stories = np.array([0] * 500 + [1] * 300 + [2] * 200)
    >>> one = bill(Fixed([0.5, 0.3, 0.2]), Fixed([0.3, 0.6, 0.1]), stories)
    >>> print(f"{one.predicted:.2f} bits more, by KL; {one.exact:.2f} for these data; coded back: {one.same}")
    268.48 bits more, by KL; 268.48 for these data; coded back: True
    >>> abs(one.extra - one.exact) <= 64
    True
    """
    if p.size != q.size:
        raise FormError(f"coding: p has {p.size} symbols but q has {q.size}; both need the alphabet of the data.")
    values = symbols(data, p.size)
    codes = [encode(values, model, method) for model in (p, q)]
    same = all(_same(coded, model, values) for coded, model in zip(codes, (p, q), strict=True))
    own, other = (Cost(coded.bits, model.ideal(values)) for coded, model in zip(codes, (p, q), strict=True))
    predicted = len(values) * _kl_bits(p, q) if isinstance(p, Fixed) and isinstance(q, Fixed) else None
    if isinstance(p, Fixed) and isinstance(q, Fixed) and len(values):
        shares = frequencies(values, p.size)
        exact = len(values) * (_kl_bits(shares, q) - _kl_bits(shares, p))
    else:
        exact = other.ideal - own.ideal
    return Bill(len(values), p.size, method, own, other, predicted, exact, same)


def _same(coded: Coded, model: Model, values: Symbols) -> bool:
    return bool(np.array_equal(decode(coded, model), values))


def _kl_bits(p: Fixed, q: Fixed) -> float:
    one, other = (Probs(torch.from_numpy(model.probabilities)) for model in (p, q))
    return float(kl(one, other, base=2))
