"""The picture of `kullback kl --plot`, as SVG, with a bounded number of marks."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from kullback.estimate.draws import draw, log_density
from kullback.kit.pictures import BLUE, INK, ORANGE, drawn, short

from .content import Content
from .measure import Answer, Side, contributions

COLOURS = (BLUE, ORANGE)
_DRAWS = 20_000
_MOST_CATEGORIES = 30
_MOST_POINTS = 2_000
_MOST_MARKS = 200
_PLACES = 801


def draw_picture(p: Side, q: Side, answer: Answer, given: tuple[str, str]) -> bytes:
    """Both sides in one pair of axes, and, where the densities are known, where the divergence comes from."""
    labels = [f"{side}: {_short(text)}" for side, text in zip("PQ", given, strict=True)]

    def fill(figure: Any) -> None:
        if isinstance(p, Content) and isinstance(q, Content) and p.kind != "samples":
            _categories(figure, p, q, labels)
        elif _dimension(p) == 1:
            _line(figure, p, q, labels)
        else:
            _plane(figure, p, q, labels)
        figure.suptitle(_title(answer), x=0.02, ha="left", fontsize=13)

    return drawn(fill, size=(7.5, 5.2), of="distill")


def _title(answer: Answer) -> str:
    if math.isinf(answer.value):
        return f"{answer.direction} is infinite"
    low_high = ""
    if answer.interval is not None and math.isfinite(answer.interval[1]):
        low_high = f"   ({answer.interval[0]:.4g} to {answer.interval[1]:.4g})"
    return f"{answer.direction} = {answer.value:.5g} {answer.unit}{low_high}"


def _categories(figure: Any, p: Content, q: Content, labels: list[str]) -> None:
    shares = [_mean_share(side) for side in (p, q)]
    terms = contributions(p, q)  # +inf where q has none
    shown = torch.arange(len(terms))
    if len(terms) > _MOST_CATEGORIES:
        shown = torch.sort(torch.topk(terms.abs(), _MOST_CATEGORIES).indices).values
    top, bottom = figure.subplots(2, 1, sharex=True)
    at = np.arange(len(shown))
    for label, share, offset in zip(labels, shares, (-0.2, 0.2), strict=True):
        top.bar(at + offset, share[shown].numpy(), 0.4, color=COLOURS[offset > 0], label=label)
    top.set_ylabel("share")
    top.set_ylim(bottom=0)
    _legend(top)
    finite = torch.where(torch.isinf(terms), 0.0, terms)[shown].numpy()
    bottom.bar(at, finite, 0.6, color=[COLOURS[0] if term >= 0 else COLOURS[1] for term in finite])
    for place, term in zip(at, terms[shown].tolist(), strict=True):
        if term == math.inf:
            bottom.annotate("∞", (place, 0), ha="center", va="bottom", fontsize=14)
    bottom.axhline(0, color=INK, linewidth=0.8)
    bottom.set_ylabel("p log(p/q), nats")
    ticks = [short(p.labels[i], 20) for i in shown.tolist()]
    turn = max(map(len, ticks)) * len(ticks) > 80
    bottom.set_xticks(at, ticks, rotation=60 if turn else 0, ha="right" if turn else "center")
    if len(terms) > _MOST_CATEGORIES:
        bottom.set_xlabel(f"the {_MOST_CATEGORIES} of {len(terms)} categories that matter most")


def _mean_share(side: Content) -> Tensor:
    values = torch.softmax(side.values, -1) if side.kind == "logits" else side.values
    share = values / values.sum(-1, keepdim=True)
    return share if share.dim() == 1 else share.mean(0)


def _line(figure: Any, p: Side, q: Side, labels: list[str]) -> None:
    known = isinstance(p, Distribution) and isinstance(q, Distribution)
    top, *rest = figure.subplots(2, 1, sharex=True) if known else [figure.subplots()]
    clouds = [_draws(side).squeeze(-1).numpy() for side in (p, q)]
    low = min(float(np.quantile(cloud, 0.005, method="lower")) for cloud in clouds)
    high = max(float(np.quantile(cloud, 0.995, method="higher")) for cloud in clouds)
    whole = any(isinstance(side, Distribution) and _is_whole(side) for side in (p, q))
    at = _places(low, high, whole)
    marked = whole and len(at) <= _MOST_MARKS
    style = {"marker": "o", "markersize": 4, "linewidth": 0.8} if marked else {"linewidth": 2.0}
    edges = np.linspace(low, high, int(min(60, max(10, np.sqrt(min(map(len, clouds)))))) + 1)
    for i, (side, cloud) in enumerate(zip((p, q), clouds, strict=True)):
        if isinstance(side, Distribution):
            density = torch.exp(log_density(side, at))
            top.plot(
                at, torch.where(torch.isfinite(density), density, math.nan), color=COLOURS[i], label=labels[i], **style
            )
        else:
            top.hist(cloud, edges, density=True, color=COLOURS[i], alpha=0.3)
            top.hist(cloud, edges, density=True, color=COLOURS[i], histtype="step", linewidth=1.6, label=labels[i])
    top.set_ylabel("probability" if whole else "density")
    top.set_ylim(bottom=0)
    _legend(top)
    (rest or [top])[0].set_xlabel(_column(p, q))
    if isinstance(p, Distribution) and isinstance(q, Distribution):
        log_p, log_q = log_density(p, at), log_density(q, at)
        term = torch.where(torch.isfinite(log_p), log_p.exp() * (log_p - log_q), 0.0)
        rest[0].plot(at, torch.where(torch.isfinite(term), term, math.nan), color=COLOURS[0], **style)
        rest[0].axhline(0, color=INK, linewidth=0.8)
        rest[0].set_ylabel("p log(p/q), nats")


def _places(low: float, high: float, whole: bool) -> Tensor:
    """Where densities are drawn: every whole number, if there are not too many of them, or places between."""
    if whole:
        first, last = np.floor(low), np.ceil(high)
        step = max(1.0, np.ceil((last - first) / (_PLACES - 1)))
        return torch.arange(first, last + 1.0, step, dtype=torch.float64)
    pad = 0.05 * (high - low) or max(1.0, 1e-3 * abs(low))
    return torch.linspace(low - pad, high + pad, _PLACES, dtype=torch.float64)


def _column(p: Side, q: Side) -> str:
    names = next((side.names for side in (p, q) if isinstance(side, Content) and side.names), ("value",))
    return short(names[0], 40)


def _plane(figure: Any, p: Side, q: Side, labels: list[str]) -> None:
    axes = figure.subplots()
    for i, side in enumerate((p, q)):
        cloud = _draws(side)[:_MOST_POINTS].numpy()
        axes.scatter(cloud[:, 0], cloud[:, 1], s=7, alpha=0.5, linewidths=0, color=COLOURS[i], label=labels[i])
    names = next((side.names for side in (p, q) if isinstance(side, Content) and side.names), ("column 1", "column 2"))
    axes.set_xlabel(short(names[0], 40))
    axes.set_ylabel(short(names[1], 40))
    _legend(axes)


def _draws(side: Side) -> Tensor:
    if isinstance(side, Content):
        return side.values
    x = draw(side, _DRAWS, torch.Generator().manual_seed(0)).double()
    return x.reshape(len(x), -1)


def _dimension(side: Side) -> int:
    return side.values.shape[-1] if isinstance(side, Content) else max(1, side.event_shape.numel())


def _is_whole(side: Distribution) -> bool:
    support: Any = side.support
    return bool(support.is_discrete)


def _short(text: str) -> str:
    name = " ".join(text.replace("\\", "/").split())
    name = name if "(" in name else name.rpartition("/")[2]
    return short(name, 40)


def _legend(axes: Any) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
