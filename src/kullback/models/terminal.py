"""What a comparison says on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .results import COMPLETE, Comparison
from .statistics import DIVERGENCE, MEAN_KLD, OTHERS, PERPLEXITY, PROBABILITY
from .summary import texts
from .text import document_ids

Rows = list[list[str]]
SHOWN = 5  # of the worst tokens, of the candidate that is farthest
AROUND = 8  # tokens before one of the worst


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[str], Rows]]:
    """(title, header, rows): a column for each candidate under llama.cpp's names, then the pairs."""
    candidates = found["candidates"]
    if not candidates or not candidates[0].get("statistics"):
        return
    beside = [(floor["name"], floor["statistics"]) for floor in found["noise_floor"]]
    theirs = (found.get("llama_cpp") or {}).get("statistics", {})
    for title in (PERPLEXITY, DIVERGENCE, PROBABILITY, OTHERS):
        columns = [(each["name"], each["statistics"][title]) for each in candidates]
        floors = [(f"reference, {name}", blocks[title]) for name, blocks in beside]
        header = [f"{title}", *(name for name, _ in (*columns, *floors)), *(["llama.cpp"] if theirs else [])]
        rows = []
        for i, first in enumerate(columns[0][1]):
            cells = [value(block[i]) for _, block in (*columns, *floors)]
            if theirs:
                cells.append(theirs.get(first["name"], ""))
            unit = f", {first['unit']}" if first["unit"] else ""
            rows.append([f"{first['name']}{unit}", *cells])
        yield "", header, rows
    if found["pairs"]:
        yield (
            "",
            [
                "Mean KLD, first - second",
                "difference ± by document",
                "95 % interval",
                "p",
                "first better",
                "second better",
            ],
            [_pair(pair) for pair in found["pairs"]],
        )


def value(of: Mapping[str, Any]) -> str:
    """value ± error by document (error if tokens were independent).

    >>> value({"value": 0.0123456, "clustered": 0.00021, "iid": 0.0001})
    '0.01235 ± 0.00021 (0.00010)'
    """
    if of["value"] is None:
        return "–"
    if of["clustered"] is None and of["iid"] is None:
        return number(of["value"])
    errors = [x for x in (of["clustered"], of["iid"]) if x]
    places = max(0, 1 - _exponent(min(errors))) if errors else None
    if places is None or places > 12 or abs(of["value"]) >= 1e9:
        shown, form = number(of["value"]), number
    elif places > 7:
        shown, form = f"{of['value']:.3e}", lambda x: f"{x:.1e}"
    else:
        shown, form = f"{of['value']:.{places}f}", lambda x: f"{x:.{places}f}"
    by_document = "–" if of["clustered"] is None else form(of["clustered"])
    return f"{shown} ± {by_document} ({'–' if of['iid'] is None else form(of['iid'])})"


def number(x: float) -> str:
    """Four digits.

    >>> number(0.0), number(0.00012345), number(12.5)
    ('0', '0.0001234', '12.5')
    """
    return f"{x:.4g}"


def _exponent(x: float) -> int:
    return int(f"{x:e}".partition("e")[2])


def _pair(pair: Mapping[str, Any]) -> list[str]:
    d, p = pair["difference"], pair["p_adjusted"]
    interval = "–" if d["low"] is None else f"{number(d['low'])} to {number(d['high'])}"
    shares = [f"{100 * pair[name]:.1f} %" for name in ("first_better", "second_better")]
    shown = "–" if p is None else "< 1e-99" if p < 1e-99 else f"{p:.2g}"
    return [f"{pair['first']} - {pair['second']}", value(d), interval, shown, *shares]


def sentences(found: Comparison) -> list[str]:
    """What the tables do not say."""
    document = found.to_json()
    text, said = document["text"], []
    measured = (
        f"{text['scored']:,} tokens"
        if document["status"] == COMPLETE
        else f"{text['measured']:,} of {text['scored']:,} tokens: it was stopped"
    )
    if document["candidates"]:
        said.append(
            f"{measured} of {text['documents']:,} documents ({text['source']}), reference {document['reference']['name']}: "
            f"{document['reference']['about']}. Errors: by document (as if tokens were independent); KLD is "
            "KL(reference‖candidate) in nats."
        )
    elif found.settings.save_reference is not None:
        said.append(f"{measured} of {found.plan.reference.name} are stored in {found.settings.save_reference}")
    said += [f"Noise floor, {floor['name']}: {floor['about']}." for floor in document["noise_floor"]]
    said += _worst(found)
    said += [f"Note: {note}" for note in document["notes"]]
    return said


def _worst(found: Comparison) -> list[str]:
    """The tokens of the largest KLD of the candidate that is farthest, each with what stands before it."""
    candidates = {name: one for name, one in found.candidates.items() if one.get("worst")}
    if not candidates:
        return []
    name, one = max(candidates.items(), key=lambda item: _mean(item[1]))
    worst: Sequence[Mapping[str, Any]] = [w for w in one["worst"][:SHOWN] if w["kl"] != 0.0]
    if not worst:
        return []
    ids = document_ids(found.plan.text, {w["document"] for w in worst}.__contains__)
    spelt = texts(found.plan.tokenizer)
    said = [f"The largest KLD of {name}:"]
    for w in worst:
        tokens, first = ids[w["document"]]
        at = w["position"] - first
        before = "".join(spelt(tokens[max(0, at - AROUND) : at]))
        came, p, q = spelt([w["token"], w["top_p"], w["top_q"]])
        kl = "infinite" if w["kl"] is None else number(w["kl"])
        said.append(
            f"  {kl} at {w['name']}, token {w['position']}: {before!r} came {came!r}; the reference expects {p!r}, "
            f"{name} {q!r}"
        )
    return said


def _mean(one: Mapping[str, Any]) -> float:
    mean = next(each for each in one["statistics"][DIVERGENCE] if each["name"] == MEAN_KLD)["value"]
    return float("inf") if mean is None else float(mean)
