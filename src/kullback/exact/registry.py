"""The table of closed forms: which formula serves which pair of distribution types.

An entry holds for its types and their subclasses; the most specific one is taken (first by p's type, then by q's).
Registering a pair twice raises, so that an import order can never change a value.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kullback._errors import KullbackError

Quantity = Literal["kl", "entropy", "log_affinity"]
Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """One entry: float64 tensor of batch shape from the distributions (log_affinity: and the order)."""

    quantity: Quantity
    types: tuple[type, ...]
    formula: Formula
    source: str
    applies: Callable[..., bool]

    @property
    def name(self) -> str:
        return "‖".join(t.__name__ for t in self.types)

    @property
    def equation(self) -> str:
        """The first line of the formula's docstring."""
        return (self.formula.__doc__ or "").strip().split("\n")[0]


class Registry:
    """Closed forms by quantity and types."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Quantity, tuple[type, ...]], ClosedForm] = {}

    def register(
        self,
        *types: type,
        source: str,
        quantity: Quantity = "kl",
        applies: Callable[..., bool] = lambda *_: True,
    ) -> Callable[[Formula], Formula]:
        """Decorator that enters a formula for a pair (or, for entropy, one) of types; `applies` may narrow it."""

        def enter(formula: Formula) -> Formula:
            key = (quantity, types)
            if key in self._entries:
                raise KullbackError(
                    f"{quantity} of {'‖'.join(t.__name__ for t in types)} is registered already, "
                    f"by {self._entries[key].formula.__name__}: a pair has one closed form."
                )
            self._entries[key] = ClosedForm(quantity, types, formula, source, applies)
            return formula

        return enter

    def find(self, quantity: Quantity, *distributions: Any) -> ClosedForm | None:
        """The most specific entry that serves these objects, or None."""
        found: list[tuple[tuple[int, ...], ClosedForm]] = []
        for (kind, types), entry in self._entries.items():
            if kind == quantity and all(isinstance(d, t) for d, t in zip(distributions, types, strict=True)):
                distance = tuple(type(d).__mro__.index(t) for d, t in zip(distributions, types, strict=True))
                found.append((distance, entry))
        for _, entry in sorted(found, key=lambda item: item[0]):
            if entry.applies(*distributions):
                return entry
        return None

    def __iter__(self) -> Iterator[ClosedForm]:
        return iter(self._entries.values())


CLOSED_FORMS = Registry()
closed_form = CLOSED_FORMS.register


def doubles(distribution: Any, *names: str) -> tuple[Tensor, ...]:
    """Parameters in float64; gradients go back through the cast."""
    return tuple(torch.as_tensor(getattr(distribution, name)).double() for name in names)


def probabilities(distribution: Any) -> tuple[Tensor, Tensor]:
    """(probs, 1 - probs) in float64, from whichever of probs and logits was given."""
    if given_as_probs(distribution):
        (probs,) = doubles(distribution, "probs")
        return probs, 1.0 - probs
    (logits,) = doubles(distribution, "logits")
    return torch.sigmoid(logits), torch.sigmoid(-logits)


def logits(distribution: Any) -> Tensor:
    """log(probs / (1 - probs)), from whichever was given: η of the continuous Bernoulli e^(η x) on [0, 1]."""
    if given_as_probs(distribution):
        (probs,) = doubles(distribution, "probs")
        return torch.log(probs) - torch.log1p(-probs)
    return doubles(distribution, "logits")[0]


def given_as_probs(distribution: Any) -> bool:
    """Whether the caller gave probs; PyTorch caches the other one, clamped and rounded, beside it."""
    state = distribution.__dict__
    if "probs" not in state or "logits" not in state:
        return "probs" in state
    if "_param" in state:
        return state["_param"] is state["probs"]
    return not torch.equal(torch.sigmoid(state["logits"]), state["probs"])


def infinite_where(condition: Tensor, value: Tensor) -> Tensor:
    """+inf with zero gradient where `condition` holds; `value` must be finite there (docs/decisions/0002)."""
    return torch.where(condition, torch.inf, value)
