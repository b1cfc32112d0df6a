"""What was observed: samples, counts, log-densities at draws. `estimate.kl` takes these; the exact verbs do not."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback._errors import FormError

from .finite import Array, FiniteForm, Probs, dense_tensor
from .sparse import Drawn


@dataclass(frozen=True, eq=False)
class Samples:
    """n independent draws from a distribution that is otherwise unknown.

    Args:
        x: (n, d), one draw a row, or (n,) for d = 1; any real dtype, finite. `data` is (n, d), float64.

    Raises:
        FormError: no rows, no columns, more than two axes, a NaN or an infinity (the row is named).

    >>> from kullback import Samples
    >>> Samples([1.0, 2.0, 4.0]).data.shape
    torch.Size([3, 1])
    """

    x: Array
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = _real("Samples", self.x)
        if data.dim() not in (1, 2):
            raise FormError(
                f"Samples: x has shape {tuple(data.shape)}, but samples are (n, d), or (n,) for d=1. "
                "Write Samples(x.reshape(len(x), -1))."
            )
        data = data.unsqueeze(-1) if data.dim() == 1 else data
        if 0 in data.shape:
            raise FormError(
                f"Samples: x has shape {tuple(data.shape)}; at least one draw with at least one column is needed."
            )
        bad = ~torch.isfinite(data)
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            rows = int(bad.any(-1).sum())
            raise FormError(
                f"Samples: row {row} holds {data[row, column].item()} in column {column}"
                f"{f' ({rows} such rows)' if rows > 1 else ''}; a draw has finite coordinates. "
                "Write Samples(x[torch.isfinite(x).all(-1)]) if such rows may be left out."
            )
        object.__setattr__(self, "data", data)

    def __len__(self) -> int:
        return self.data.shape[0]


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each of B categories was seen in n independent draws.

    Args:
        x: (B,), whole numbers >= 0 of any real dtype, not all 0. `data` is (B,), float64.

    Raises:
        FormError: negative, fractional or NaN entries (the category is named), no counts at all, not one axis.

    >>> from kullback import Counts
    >>> Counts([9, 12, 4]).total
    25
    """

    x: Array
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        data = _real("Counts", self.x)
        if data.dim() != 1 or data.shape[0] == 0:
            raise FormError(
                f"Counts: x has shape {tuple(data.shape)}, but counts are (B,), one number a category. "
                "Write one Counts a row, or torch.bincount(labels) for class indices."
            )
        bad = ~(torch.isfinite(data) & (data >= 0) & (data == data.round()))
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise FormError(
                f"Counts: category {at} holds {data[at].item():g}, but a count is a whole number >= 0. "
                "Write Probs(x) if these are probabilities: they are exact, and kl(p, q) takes them."
            )
        if not bool(data.any()):
            raise FormError("Counts: every count is 0; at least one observation is needed.")
        object.__setattr__(self, "data", data)

    @property
    def total(self) -> int:
        """n, the number of observations."""
        return int(self.data.sum())


@dataclass(frozen=True, eq=False)
class LogRatios:
    """Log-densities of p and q at the same draws: what a sampler or a policy has at hand.

    Args:
        log_p, log_q: (...), the normalised log-densities (or log-probabilities) of each draw under p and under q; all
            axes are draws. `data` is (3, n), float64: log p, log q, log r at the draws.
        drawn_from: "p", "q", or the log-density log r of a third distribution at the draws, shaped like log_p.

    KL(p‖q) is estimated, whatever the draws come from. In reinforcement learning, where actions come from the new
    policy π and the penalty is KL(π‖reference), p is π: `LogRatios(log_pi, log_reference, drawn_from="p")`.

    Raises:
        FormError: different shapes, no draws, NaN or +inf, or a draw that its own distribution rules out (-inf).

    >>> from kullback import LogRatios
    >>> LogRatios([-1.0, -2.0], [-1.5, -1.0], drawn_from="p").data.shape
    torch.Size([3, 2])
    """

    log_p: Array
    log_q: Array
    drawn_from: Literal["p", "q"] | Any
    data: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        log_p, log_q = _real("LogRatios", self.log_p), _real("LogRatios", self.log_q)
        named = isinstance(self.drawn_from, str)
        if named and self.drawn_from not in ("p", "q"):
            raise FormError(
                f"LogRatios: drawn_from is {self.drawn_from!r}; write 'p', 'q', or the log-density of the distribution "
                "that the draws come from, at the draws."
            )
        log_r = {"p": log_p, "q": log_q}[self.drawn_from] if named else _real("LogRatios", self.drawn_from)
        if not log_p.shape == log_q.shape == log_r.shape or log_p.numel() == 0:
            raise FormError(
                f"LogRatios: log_p has shape {tuple(log_p.shape)}, log_q {tuple(log_q.shape)}"
                f"{'' if named else f', drawn_from {tuple(log_r.shape)}'}; "
                "equal shapes with at least one draw are needed, one number a draw from each distribution."
            )
        data = torch.stack([log_p.reshape(-1), log_q.reshape(-1), log_r.reshape(-1)])
        for name, row in zip(("log_p", "log_q", "drawn_from"), data, strict=True):
            bad = row.isnan() | (row == torch.inf)
            if bool(bad.any()):
                at = int(bad.nonzero()[0])
                raise FormError(f"LogRatios: {name} is {row[at].item()} at draw {at}; a log-density is below +inf.")
        impossible = data[2] == -torch.inf
        if bool(impossible.any()):
            source = self.drawn_from if named else "the distribution named by drawn_from"
            raise FormError(
                f"LogRatios: draw {int(impossible.nonzero()[0])} has log-density -inf under {source}, from which it "
                "is said to come. Check drawn_from, and that the draws and the log-densities belong together."
            )
        object.__setattr__(self, "data", data)


def what_to_estimate(verb: str, p: Any, q: Any) -> str | None:
    """What an exact verb says of Samples, Counts and LogRatios: the call that works, or why none does. None of others.

    >>> from kullback import Samples
    >>> what_to_estimate("kl", Samples([1.0]), Samples([2.0]))
    'kl: p holds Samples and q Samples, of which a divergence can only be estimated. Write estimate.kl(p, q).'
    """
    if isinstance(p, Drawn) or isinstance(q, Drawn):
        return _of_drawn(verb, p, q)
    observed = [isinstance(side, Samples | Counts | LogRatios) for side in (p, q)]
    if not any(observed):
        return None
    names = [type(side).__name__ for side in (p, q)]
    said = f"{verb}: p holds {names[0]} and q {names[1]}, of which a divergence can only be estimated. "
    if isinstance(p, LogRatios) or isinstance(q, LogRatios):
        return said + f"LogRatios hold both sides: write estimate.kl({'p' if isinstance(p, LogRatios) else 'q'})."
    if isinstance(p, Samples | Distribution) and isinstance(q, Samples | Distribution):
        shapes = [_event(side) for side in (p, q)]
        if shapes[0] != shapes[1]:
            return (
                f"{verb}: a draw of p has shape {shapes[0]} and one of q {shapes[1]}, so that there is no divergence. "
                "Write the same columns on both sides."
            )
        if verb == "kl":
            return said + "Write estimate.kl(p, q)."
        if verb == "jeffreys":
            return said + "Write estimate.kl(p, q) + estimate.kl(q, p)."
        return said + "From samples only KL is: write Counts of both in the same bins, or estimate.kl(p, q)."
    if isinstance(p, Counts | Probs) and isinstance(q, Counts | Probs):
        if verb == "kl":
            return said + "Write estimate.kl(p, q)."
        if verb == "entropy":
            return said + "Write entropy(Probs(x / x.sum())) for that of the frequencies."
        return said + f"Write estimate.bootstrap_divergence({_row(verb)}, p, q, generator=torch.Generator())."
    if all(isinstance(side, Counts | FiniteForm) for side in (p, q)):
        return said + "Beside Counts write one row of Probs, such as Probs(logits.softmax(-1))."
    return said + "Write Counts on both sides, of the same categories or bins (torch.bincount, torch.histogram)."


def _of_drawn(verb: str, p: Any, q: Any) -> str:
    said = f"{verb}: {'p' if isinstance(p, Drawn) else 'q'} holds Drawn, classes drawn from a distribution. "
    if verb == "kl" and isinstance(p, Drawn):
        return said + "KL(p‖q) can only be estimated of it. Write estimate.kl(Drawn(...), q)."
    return (
        said + "Of it there is an unbiased estimate of KL(p‖q) alone, p being what was drawn from, and none of "
        "the reverse KL, of Jensen-Shannon or any other. Write estimate.kl(Drawn(...), q), or TopK(...) as p."
    )


def _event(side: Any) -> tuple[int, ...]:
    """The shape of a draw, where one column and a number are the same."""
    shape = (side.data.shape[1],) if isinstance(side, Samples) else tuple(side.event_shape)
    return () if shape == (1,) else shape


def _row(verb: str) -> str:
    parameter = {"js": "0.5", "alpha": "order", "renyi": "order", "tsallis": "order", "skew": "weight"}.get(verb)
    return f"divergences.{verb.upper()}" if parameter is None else f"divergences.{verb}({parameter})"


def _real(owner: str, x: Any) -> Tensor:
    try:
        data = dense_tensor(owner, "x", x).detach()
    except (TypeError, ValueError, RuntimeError):
        raise FormError(
            f"{owner}: {type(x).__name__} does not hold a rectangle of numbers. Write {owner}(torch.tensor(...))."
        ) from None
    if data.is_complex() or data.dtype == torch.bool:
        raise FormError(f"{owner}: the dtype is {data.dtype}, but real numbers are needed. Write {owner}(x.double()).")
    return data.double()
