"""One list of pairs of rows, for tests and benchmarks: ordinary ones, and every edge that the conventions speak of.

A case makes two tensors of scores (..., V), natural logarithms of weights up to a constant per row, with -inf for
"no mass". `FORMS` turns scores into a form in any dtype; `ENGINES` lists who computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kullback import Logits, LogProbs, Probs
from kullback.core.readings import Side
from kullback.core.reduction import Sum
from kullback.divergences import TABLE, Divergence
from kullback.engines.call import Call
from kullback.forms.finite import FiniteForm

NO = -math.inf


@dataclass(frozen=True)
class Case:
    """`make()` gives the scores of p and of q, float64; `edge` says that some cell has no mass."""

    name: str
    make: Callable[[], tuple[Tensor, Tensor]]
    big: bool = False

    def __str__(self) -> str:
        return self.name


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _random(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    return normal(*shape, seed=1, scale=scale), normal(*shape, seed=2, scale=scale)


def _near(step: float, *shape: int) -> tuple[Tensor, Tensor]:
    a = normal(*shape, seed=3)
    return a, a + step * normal(*shape, seed=4)


def _rows(p: list[Any], q: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)


def _masked(p: bool, q: bool) -> tuple[Tensor, Tensor]:
    a, b = _random(3, 6)
    holes = torch.tensor([1, 4, 5])
    if p:
        a[torch.arange(3), holes] = NO
    if q:
        b[torch.arange(3), holes] = NO
    return a, b


def _offset(p: float, q: float) -> tuple[Tensor, Tensor]:
    a, b = _random(3, 6)
    return a + p, b + q


CASES: tuple[Case, ...] = (
    Case("random", lambda: _random(4, 7)),
    Case("no_batch_axis", lambda: _random(5)),
    Case("two_batch_axes", lambda: _random(2, 3, 4)),
    Case("equal", lambda: (normal(3, 6, seed=5), normal(3, 6, seed=5))),
    Case("nearly_equal", lambda: _near(1e-3, 3, 6)),
    Case("very_nearly_equal", lambda: _near(2e-5, 3, 40)),
    Case("one_cell_apart", lambda: _rows([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0 + 2**-20]])),
    Case("far_apart", lambda: _random(3, 6, scale=15.0)),
    Case("one_hot_p", lambda: (_rows([[NO, 0, NO]], [])[0], normal(1, 3, seed=6))),
    Case("one_hot_q", lambda: (normal(1, 3, seed=6), _rows([[NO, 0, NO]], [])[0])),
    Case("one_hot_both", lambda: _rows([[NO, 0, NO]], [[NO, 3, NO]])),
    Case("disjoint", lambda: _rows([[0, 0, NO, NO]], [[NO, NO, 1, 0]])),
    Case("disjoint_one_hot", lambda: _rows([[0, NO]], [[NO, 0]])),
    Case("no_mass_in_p", lambda: _masked(True, False)),
    Case("no_mass_in_q", lambda: _masked(False, True)),
    Case("no_mass_in_both", lambda: _masked(True, True)),
    Case("no_mass_here_and_there", lambda: _rows([[NO, 0, 1, NO]], [[0, 1, NO, NO]])),
    Case(
        "no_mass_in_some_rows",
        lambda: _rows([[0, 1, 2], [NO, 1, 2], [0, 1, 2], [NO, 0, 0]], [[1, 1, 0], [0, 1, 0], [NO, 1, 0], [NO, 1, 0]]),
    ),
    Case("offset_in_p", lambda: _offset(1000.0, 0.0)),
    Case("offset_in_q", lambda: _offset(0.0, -1000.0)),
    Case("offset_in_both", lambda: _offset(1000.0, 1000.0)),
    Case("one_class", lambda: _rows([[0.0], [5.0]], [[0.0], [-3.0]])),
    Case("two_classes", lambda: _random(4, 2)),
    Case("empty_batch", lambda: (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64))),
    Case("empty_middle_axis", lambda: (normal(2, 0, 3, seed=1), normal(2, 0, 3, seed=1))),
    Case("gap_of_110_in_both", lambda: _rows([[0, 110, 109]], [[1, 110, 110]])),
    Case("gap_of_110_crossed", lambda: _rows([[0, 110]], [[110, 0]])),
    Case("gap_of_1000_in_both", lambda: _rows([[0, 1000, 999]], [[1, 1000, 1000]])),
    Case("gap_of_1000_crossed", lambda: _rows([[0, 1000]], [[1000, 0]])),
    Case("subnormal_in_float32", lambda: _rows([[0, -95, -1]], [[0, -96, -2]])),
    Case("subnormal_in_float64", lambda: _rows([[0, -735, -1]], [[0, -736, -2]])),
    Case("ties_in_bfloat16", lambda: _rows([[8, 8, 8, 7.96875]], [[8, 8, 7.96875, 8]])),
    Case("not_contiguous", lambda: (normal(6, 4, seed=7).T, normal(4, 12, seed=8)[:, ::2])),
    Case("expanded", lambda: (normal(1, 5, seed=9).expand(4, 5), normal(4, 1, seed=10).expand(4, 5))),
    Case("more_than_65535_rows", lambda: _random(65_537, 2), big=True),
    Case("wide", lambda: _random(2, 4_001), big=True),
)
SMALL = tuple(case for case in CASES if not case.big)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _logits(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return scores.to(dtype)


def _log_probs(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.log_softmax(scores, -1).to(dtype)


def _probs(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.softmax(scores, -1).to(dtype)


DATA: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {"Logits": _logits, "LogProbs": _log_probs, "Probs": _probs}
"""Name of a form with columns -> the data it holds for float64 scores, in a dtype."""

FORMS: dict[str, Callable[[Tensor], FiniteForm]] = {"Logits": Logits, "LogProbs": LogProbs, "Probs": Probs}

ENGINES = ("eager", "cpu")
"""Who computes. Every law, oracle and gradient test runs on each."""


def forms(case: Case, names: tuple[str, str] = ("Logits", "Logits"), dtype: torch.dtype = torch.float64):
    """The pair of a case, as forms."""
    return tuple(FORMS[n](DATA[n](s, dtype)) for n, s in zip(names, case.make(), strict=True))


def leaves(case: Case, names: tuple[str, str] = ("Logits", "Logits"), dtype: torch.dtype = torch.float64):
    """The data of a case that requires grad, strides kept."""
    return tuple(DATA[n](s, dtype).detach().requires_grad_() for n, s in zip(names, case.make(), strict=True))


def call_of(total: Sum, p: Side, q: Side, num_classes: int) -> Call:
    """What an engine is asked, for a sum of two sides."""
    dtypes = tuple(x.dtype for x in (*p.data, *q.data))
    return Call(total, p.reading, q.reading, dtypes, p.data[0].device.type, num_classes)


def parameter(divergence: Divergence) -> float | None:
    """The number in a name such as alpha(0.3)."""
    return divergence.parameter


def row(name: str) -> Divergence:
    return next(d for d in TABLE if d.name == name)
