"""What a comparison says on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .results import COMPLETE, Comparison
from .statistics import MEAN_KLD
from .summary import texts
from .text import before

Rows = list[list[str]]
SHORT = (
    MEAN_KLD,
    "99.9% KLD",
    "Maximum KLD",
    "Mean ln(PPL(Q)/PPL(base))",
    "RMS Δp",
    "Same top p",
    "Mean JS",
    "Mean total variation",
)
SHOWN = 2  # of the worst tokens, of the candidate that is farthest
AROUND = 8  # tokens before one of the worst


def tables(found: Mapping[str, Any], *, full: bool = False) -> Iterator[tuple[list[str], Rows]]:
    """(header, rows): a column for each candidate, the noise floor, what llama.cpp printed; then the pairs.

    Args: full: every line of llama.cpp's blocks, instead of those that decide.
    """
    candidates = [each for each in found["candidates"] if each.get("statistics")]
    if not candidates:
        return
    columns = [(each["name"], each["statistics"]) for each in candidates]
    columns += [(f"reference, {floor['name']}", floor["statistics"]) for floor in found["noise_floor"]]
    printed = (found["llama_cpp"] or {}).get("statistics", {})
    names = [name for name, _ in columns] + ["llama.cpp"] * bool(printed)
    blocks = columns[0][1]
    parts = {title: [each["name"] for each in block] for title, block in blocks.items()} if full else {"": list(SHORT)}
    for title, wanted in parts.items():
        rows = []
        for name in wanted:
            cells = [of(each, name) for _, each in columns]
            unit = f", {cells[0]['unit']}" if cells[0]["unit"] else ""
            rows.append([f"{name}{unit}", *map(value, cells), *([printed.get(name, "")] if printed else [])])
        yield [title, *names], rows
    if found["pairs"]:
        header = ["Mean KLD", "difference", "95 % interval", "p (Holm)", "first better", "second better"]
        yield header, [_pair(pair) for pair in found["pairs"]]


def of(blocks: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A statistic by its name, in whatever block."""
    found: Mapping[str, Any] = next(each for block in blocks.values() for each in block if each["name"] == name)
    return found


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
    if places is None or abs(of["value"]) >= 1e9:
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
    measured = f"{text['scored']:,} tokens"
    if document["status"] != COMPLETE:
        measured = f"{text['measured']:,} of {text['scored']:,} tokens: it was stopped"
    if document["candidates"]:
        reference = document["reference"]
        said.append(
            f"{measured} of {text['documents']:,} documents of {text['source']}; reference {reference['name']}: "
            f"{reference['about']}. KLD is KL(reference‖candidate) in nats. Errors: by document (as if tokens were "
            "independent)."
        )
    if found.settings.save_reference is not None:
        said.append(f"The run of {found.plan.reference.name} ({measured}) is kept in {found.settings.save_reference}.")
    said += [f"Reference, {floor['name']}: {floor['about']}." for floor in document["noise_floor"]]
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
    left = before(found.plan.text, [(w["document"], w["position"]) for w in worst], AROUND)
    spelt = texts(found.plan.tokenizer)
    said = [f"The largest KLD of {name}:"]
    for w, ids in zip(worst, left, strict=True):
        came, p, q = spelt([w["token"], w["top_p"], w["top_q"]])
        kl = "infinite" if w["kl"] is None else number(w["kl"])
        said.append(
            f"  {kl} at {w['name']}, token {w['position']}: {''.join(spelt(ids))!r} came {came!r}; the reference "
            f"expects {p!r}, "
            f"{name} {q!r}"
        )
    return said


def _mean(one: Mapping[str, Any]) -> float:
    mean = of(one["statistics"], MEAN_KLD)["value"]
    return float("inf") if mean is None else float(mean)
