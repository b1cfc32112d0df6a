"""How the answers of `kullback kl` are printed."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kullback.kit.numbers import finite
from kullback.kit.tables import shortened
from kullback.kit.terminal import pairs

from .content import Content
from .measure import Answer, Side

_SHOWN = 30  # categories, of --contributions


def text(
    sides: tuple[Side, Side],
    given: tuple[str, str],
    answers: list[Answer],
    terms: list[tuple[str, float]] | None,
    plot: Path | None,
) -> str:
    """For people."""
    lines: list[tuple[str, str]] = []
    for one in answers:
        lines.append((one.direction, "infinite" if math.isinf(one.value) else f"{one.value:.6g} {one.unit}".rstrip()))
        if one.rows is not None:
            lines.append(("rows", _of_rows(one)))
        if one.interval is not None:
            lines.append(("interval", _interval(one)))
        lines.append(("method", (one.words or one.method) + ("" if one.exact else f", n={one.n}" + _and_m(one))))
        if one.bias and one.bias != "none":
            lines.append(("bias", one.bias))
        if one.verdict:
            lines.append(("caution", one.verdict))
    lines += [(name, _describe(side, text)) for name, side, text in zip("PQ", sides, given, strict=True)]
    if plot is not None:
        lines.append(("picture", str(plot)))
    if terms is not None:
        lines.append(("", ""))
        most = sorted(terms, key=lambda term: -abs(term[1]))[:_SHOWN]
        left = f" (the {_SHOWN} of {len(terms)} that matter most)" if len(terms) > _SHOWN else ""
        lines.append(("p log(p/q)", f"category, of the shares in the files{left}"))
        lines += [("infinite" if math.isinf(term) else f"{term:+.6g}", shortened(name)) for name, term in most]
    return pairs(lines)


def _of_rows(one: Answer) -> str:
    assert one.rows is not None
    number, infinite, low, high = one.rows
    error = "" if one.stderr is None else f" (standard error {one.stderr:.3g})"
    if infinite == number:
        return f"all {number} are infinite"
    between = f"from {low:.6g} to {high:.6g}"
    return (
        f"mean of {number}{error}, {between}"
        if not infinite
        else f"{infinite} of {number} are infinite, the others {between}"
    )


def _interval(one: Answer) -> str:
    assert one.interval is not None
    low, high = one.interval
    error = "" if one.stderr is None or one.rows is not None else f" (standard error {one.stderr:.3g})"
    if math.isinf(high):
        return "not known" if low == 0.0 else f"{low:.6g} or more at {100 * one.level:g} %{error}"
    return f"{low:.6g} to {high:.6g} at {100 * one.level:g} %{error}"


def _and_m(one: Answer) -> str:
    return "" if one.m is None else f", m={one.m}"


def _describe(side: Side, text: str) -> str:
    return str(side) if isinstance(side, Content) else shortened(text)


def document(
    sides: tuple[Side, Side], given: tuple[str, str], answers: list[Answer], terms: list[tuple[str, float]] | None
) -> dict[str, Any]:
    """For programs. JSON has no infinity: such a number is null, and "infinite" says which values are +inf."""
    results = []
    for one in answers:
        entry = {key: _plain(value) for key, value in asdict(one).items() if key != "words"}
        entry["rows"] = None if one.rows is None else {k: _plain(v) for k, v in one.rows._asdict().items()}
        entry["infinite"] = math.isinf(one.value)
        results.append(entry)
    told: dict[str, Any] = {
        name: {"given": text, **_held(side)} for name, side, text in zip("pq", sides, given, strict=True)
    }
    if terms is not None:
        told["contributions"] = [{"category": name, "value": finite(term)} for name, term in terms]
    return {**told, "results": results}


def _held(side: Side) -> dict[str, Any]:
    if not isinstance(side, Content):
        return {"held": "distribution"}
    return {"held": side.kind, "because": side.because, "notes": list(side.notes), "shape": list(side.values.shape)}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
