"""report.html of a comparison: one file that needs no other. Every number in it was computed before."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kullback.kit import page
from kullback.kit.extras import extra
from kullback.kit.numbers import significant, with_error
from kullback.kit.passages import Layer, Opinion, Passage, named, prepare, visible

from . import pictures

PASSAGE = 180  # tokens of a passage
AROUND = 10  # tokens before and after one of the worst
WORST = 10  # tokens shown for each candidate
MEAN = "Mean KLD"
Pieces = Callable[[list[int]], list[str]]


def render(results: Mapping[str, Any], folder: Path, pieces: Pieces) -> str:
    """The page of a run.

    Args:
        results: the document that results.json holds.
        folder: of the run, with the candidates' Parquet of tokens and documents.parquet.
        pieces: the texts of token ids, one each.
    """
    candidates = [one for one in results["candidates"] if one.get("statistics")]
    results = {**results, "candidates": candidates}
    passages = _chosen(results, folder) if candidates else []
    text, tokens = Texts(pieces), []
    for one in candidates:
        around = [Span(w["document"], w["position"] - AROUND, w["position"] + AROUND) for w in one["worst"][:WORST]]
        tokens.append(read_tokens(folder / one["tokens"], [*(span for _, span in passages), *around]))
    shown = [_passage(title, span, results, tokens, text) for title, span in passages if len(tokens[0][span]["token"])]
    return page.render(
        __package__,
        "report.html.j2",
        of="lm",
        scripts=("tables.js", "passages.js"),
        results=results,
        verdict=verdict(results),
        summary=summary_rows(results),
        pairs=pair_rows(results),
        blocks=[(title, block_rows(results, title)) for title in (candidates[0]["statistics"] if candidates else ())],
        charts=[(title, said, draw()) for title, said, draw in _charts(results)] if candidates else [],
        classes=class_rows(candidates) if candidates else [],
        worst=[(one["name"], worst_rows(one, its, text)) for one, its in _farthest_first(candidates, tokens)],
        shown=prepare(shown, unit="KL", number=significant, one_scale=False) if shown else None,
        percent=f"{100 * results['level']:g} %",
        settings={name: _setting(value) for name, value in results["settings"].items()},
    )


# ---------------------------------------------------------------- in words and rows


def verdict(results: Mapping[str, Any]) -> str:
    """Who is closest to the reference, how sure that is, and where chance would lie."""
    candidates, reference = results["candidates"], results["reference"]["name"]
    said = []
    if results["status"] != "complete":
        text = results["text"]
        said.append(f"Stopped after {text['measured']:,} of {text['scored']:,} tokens: the numbers are of these.")
    if not candidates:
        return " ".join([*said, "Nothing was compared."])
    best, *others = sorted(candidates, key=lambda one: _first(of(one, MEAN)["value"]))
    mean = of(best, MEAN)
    if mean["value"] == 0.0:
        said.append(f"{best['name']} is {reference}, token by token: KL is exactly 0.")
    else:
        closest = f"Closest to {reference}: {best['name']}, with" if others else f"{best['name']} has"
        to = "" if others else f" to {reference}"
        said.append(f"{closest} a KL{to} of {plus_minus(mean)} nats a token.")
    if others and (pair := _pair(results["pairs"], best["name"], others[0]["name"])):
        gap, low, high = pair
        apart = low is not None and high is not None and not low <= 0.0 <= high
        between = "" if low is None else f" ({100 * results['level']:g} %: {significant(low)} to {significant(high)})"
        said.append(
            f"The next, {others[0]['name']}, is farther by {significant(gap)}{between}."
            if apart
            else f"{others[0]['name']} cannot be told from it: farther by {significant(gap)}{between}."
        )
    if results["noise_floor"]:
        floor = max(results["noise_floor"], key=lambda one: of(one, MEAN)["value"] or 0.0)
        value = of(floor, MEAN)["value"]
        said.append(f"The reference against itself ({floor['name']}): {significant(value)}.")
        inside = [one["name"] for one in candidates if value and _first(of(one, MEAN)["low"]) <= value]
        if inside:
            said.append(f"Not beyond that: {', '.join(inside)}.")
    return " ".join(said)


def _first(value: float | None) -> float:
    """To sort by: what is unknown or infinite comes last."""
    return float("inf") if value is None else value


def _pair(pairs: Sequence[Mapping[str, Any]], near: str, far: str) -> tuple[float, float | None, float | None] | None:
    """far - near with its interval, whichever way the pair was taken."""
    for pair in pairs:
        d = pair["difference"]
        if (pair["first"], pair["second"]) == (far, near):
            return d["value"], d["low"], d["high"]
        if (pair["first"], pair["second"]) == (near, far):
            flipped = (None, None) if d["low"] is None else (-d["high"], -d["low"])
            return -d["value"], *flipped
    return None


def of(one: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A candidate's statistic by its name; without a value where there is none."""
    for block in one["statistics"].values():
        for each in block:
            if each["name"] == name:
                infinite = name == MEAN and each["value"] is None  # JSON has none
                return {**each, "value": math.inf} if infinite else each
    return dict.fromkeys(("value", "iid", "clustered", "low", "high")) | {"name": name, "unit": ""}


def plus_minus(mean: Mapping[str, Any], digits: int = 3) -> str:
    """value ± standard error by document; the value to some digits where it has none."""
    return (
        significant(mean["value"], digits)
        if mean["clustered"] is None
        else with_error(mean["value"], mean["clustered"])
    )


def interval(mean: Mapping[str, Any]) -> str:
    """Low to high."""
    return "–" if mean.get("low") is None else f"{significant(mean['low'])} … {significant(mean['high'])}"


SHORT = {  # columns of the first table, with their headings
    "Median KLD": "median",
    "99.0% KLD": "99 %",
    "Maximum KLD": "largest",
    "Mean ln(PPL(Q)/PPL(base))": "ln PPL ratio",
    "Same top p": "same top, %",
}


def summary_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each candidate; under them the reference against itself."""
    level = f"{100 * results['level']:g} %"
    rows = [["", "mean KL", f"{level} interval", "i.i.d. error", *SHORT.values(), "exactly 0, %"]]
    floors = [{**one, "name": f"reference, {one['name']}"} for one in results["noise_floor"]]
    for one in (*results["candidates"], *floors):
        mean = of(one, MEAN)
        histogram = one.get("histogram")
        zeros = significant(100.0 * histogram["zeros"] / pictures.tokens(histogram)) if histogram else "–"
        shown = (plus_minus(of(one, name), 2) for name in SHORT)
        error = significant(mean["iid"], 2)
        rows.append([one["name"], plus_minus(mean), interval(mean), error, *shown, zeros])
    return rows


def block_rows(results: Mapping[str, Any], title: str) -> list[list[str]]:
    """A row for each statistic of a block, a column for each candidate, and for llama.cpp's log where there is one."""
    candidates, log = results["candidates"], (results.get("llama_cpp") or {}).get("statistics", {})
    rows = [["", *(one["name"] for one in candidates), *(["llama.cpp"] if log else [])]]
    for first in candidates[0]["statistics"][title]:
        name, unit = first["name"], first["unit"]
        cells = [*(plus_minus(of(one, name)) for one in candidates), *([log.get(name, "–")] if log else [])]
        rows.append([f"{name}, {unit}" if unit else name, *cells])
    return rows


def pair_rows(results: Mapping[str, Any]) -> list[tuple[list[str], "Bar | None"]]:
    """A row for each pair of candidates, and its interval as the page draws it."""
    rows = []
    for one in results["pairs"]:
        d = one["difference"]
        shares = (_percent(one[key]) for key in ("first_better", "second_better", "equal"))
        cells = [
            f"{one['first']} − {one['second']}",
            plus_minus(d),
            interval(d),
            _p(one["p_value"]),
            _p(one["p_adjusted"]),
            *shares,
        ]
        rows.append((cells, Bar.of(d)))
    return rows


@dataclass(frozen=True)
class Bar:
    """An interval on an axis of its own with 0 in the middle, in per cent of its width."""

    low: float
    value: float
    high: float

    @classmethod
    def of(cls, mean: Mapping[str, Any]) -> "Bar | None":
        ends = [mean["low"], mean["value"], mean["high"]]
        if None in ends:
            return None
        widest = max(map(abs, ends)) * 1.08 or 1.0
        return cls(*(50.0 + 50.0 * x / widest for x in ends))


def _p(value: float | None) -> str:
    return "–" if value is None else "< 1e-99" if value < 1e-99 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def class_rows(candidates: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each class of token: how many, and mean and share of each candidate's KL."""
    rows = [["class", "tokens", *(cell for one in candidates for cell in (one["name"], "share of its KL, %"))]]
    for i, first in enumerate(candidates[0]["by_class"]):
        cells = (one["by_class"][i] for one in candidates)
        shown = (cell for row in cells for cell in (plus_minus(row["mean"]), _percent(row["share"])))
        rows.append([first["label"], f"{first['tokens']:,}", *shown])
    return rows


def _charts(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[], str]]]:
    candidates, level = results["candidates"], f"{100 * results['level']:g} %"
    means = [of(one, MEAN) for one in candidates]
    named_means = [(one["name"], mean) for one, mean in zip(candidates, means, strict=True)]
    floors = [of(one, MEAN)["value"] for one in results["noise_floor"]]
    dashed = " Dashed: the reference against itself." if any(floors) else ""
    yield (
        "Candidates side by side",
        f"Mean KL; bars: {level} intervals by document.{dashed}",
        lambda: pictures.means_picture(named_means, floors),
    )
    yield (
        "Where the tokens lie",
        "Share of the tokens by their KL. Those of exactly 0 have no place on a logarithmic axis: see the legend.",
        lambda: pictures.distribution_picture(candidates),
    )
    titles = {
        "by_confidence": ("By the reference's confidence", "probability of the reference's likeliest token"),
        "by_position": ("By position", "position of the token in its document"),
    }
    for key, (title, axis) in titles.items():
        if all(one.get(key) for one in candidates):
            draw = partial(pictures.bins_picture, candidates, key, axis)
            yield title, f"Mean KL of the tokens in a bin; bars: {level} intervals by document.", draw
    if all(one.get("by_class") for one in candidates):
        said = f"Mean KL of the tokens of a class; bars: {level} intervals by document."
        yield "By class of token", said, lambda: pictures.classes_picture(candidates)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100.0 * share:.1f}"


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- text


class Texts:
    """Texts of tokens, each asked for once."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self._known = pieces, dict[int, str]()

    def of(self, ids: Iterable[int]) -> list[str]:
        asked = list(map(int, ids))
        new = sorted({i for i in asked if i >= 0} - self._known.keys())
        if new:
            self._known.update(zip(new, self._pieces(new), strict=True))
        return [self._known[i] if i >= 0 else "" for i in asked]


Rows = dict[str, Any]  # columns of some scored tokens, in the order of the file


class Span(NamedTuple):
    """Part of a document, by the positions of its tokens, both ends included."""

    document: int
    first: int
    last: int


def read_tokens(path: Path, spans: Iterable[Span]) -> dict[Span, Rows]:
    """The scored tokens of spans, of which there is one, from a candidate's Parquet."""
    parquet, spans = extra("pyarrow.parquet", of="lm"), list(dict.fromkeys(spans))
    wanted = [[("document", "=", d), ("position", ">=", a), ("position", "<=", b)] for d, a, b in spans]
    table = parquet.read_table(path, columns=COLUMNS, filters=wanted)
    columns = {}
    for name in COLUMNS:
        column = table.column(name).combine_chunks()
        wide = hasattr(column.type, "list_size")
        flat = (column.flatten() if wide else column).to_numpy(zero_copy_only=False)
        columns[name] = flat.reshape(-1, column.type.list_size) if wide else flat
    found = {}
    for span in spans:
        document, position = columns["document"], columns["position"]
        rows = np.flatnonzero((document == span.document) & (position >= span.first) & (position <= span.last))
        found[span] = {name: column[rows] for name, column in columns.items()}
    return found


COLUMNS = ["document", "position", "token", "kl", "log_p", "log_q",
           "choices_p_ids", "choices_q_ids", "choices_p", "choices_q"]  # fmt: skip


def _chosen(results: Mapping[str, Any], folder: Path) -> list[tuple[str, Span]]:
    """The passages: beginnings of the first document and of the middle one, and what is around the worst token."""
    names = extra("pyarrow.parquet", of="lm").read_table(folder / "documents.parquet").column("name").to_pylist()
    candidates = results["candidates"]
    long = max(40, min(PASSAGE, 4 * PASSAGE // len(candidates)))
    chosen = [(f"{names[i]}, from its beginning", Span(i, 0, long)) for i in dict.fromkeys((0, len(names) // 2))]
    worst = [w for one in candidates for w in one["worst"]]
    if worst:
        w = max(worst, key=lambda w: _first(w["kl"]))
        around = Span(w["document"], w["position"] - long // 2, w["position"] + long // 2)
        chosen.append((f"{names[around.document]}, around the token of the largest KL", around))
    return chosen


def _farthest_first(candidates: Sequence[Mapping[str, Any]], tokens: Sequence[dict[Span, Rows]]) -> list[Any]:
    """Pairs of both, by mean KL."""
    both = list(zip(candidates, tokens, strict=True))
    return sorted(both, key=lambda pair: -_first(of(pair[0], MEAN)["value"]))


def _passage(
    title: str, span: Span, results: Mapping[str, Any], tokens: Sequence[dict[Span, Rows]], text: Texts
) -> Passage:
    """Scored tokens, with each candidate's KL and choices; the candidate that is farthest first."""
    layers = []
    for one, its in _farthest_first(results["candidates"], tokens):
        rows = its[span]
        values = [float(kl) for kl in rows["kl"]]
        said = [opinions(results["reference"]["name"], one["name"], rows, i, text) for i in range(len(values))]
        layers.append(Layer(one["name"], values, said))
    return Passage(title, text.of(tokens[0][span]["token"]), layers)


def opinions(reference: str, candidate: str, rows: Rows, i: int, text: Texts) -> tuple[Opinion, Opinion]:
    """What both sides held likely at a token, and what they gave the one that came; what is not known is left out."""

    def side(name: str, letter: str) -> Opinion:
        ids, shares = rows[f"choices_{letter}_ids"][i], rows[f"choices_{letter}"][i]
        log = float(rows[f"log_{letter}"][i])
        listed = ids >= 0
        choices = zip(text.of(ids[listed]), shares[listed].tolist(), strict=True)
        return Opinion(name, tuple(choices), None if math.isnan(log) else math.exp(log))

    return side(reference, "p"), side(candidate, "q")


@dataclass(frozen=True)
class Worst:
    """One of the worst tokens, as the page shows it."""

    kl: str
    where: str
    before: str
    token: str
    after: str
    reference: str
    candidate: str


def worst_rows(one: Mapping[str, Any], tokens: Mapping[Span, Rows], text: Texts) -> list[Worst]:
    """The tokens of the largest KL in their contexts, and what either model would have said."""
    found = []
    for w in one["worst"][:WORST]:
        rows = tokens[Span(w["document"], w["position"] - AROUND, w["position"] + AROUND)]
        at = int(np.flatnonzero(rows["position"] == w["position"])[0])
        pieces = text.of(rows["token"])
        sides = opinions("", "", rows, at, text)
        found.append(
            Worst(
                significant(_first(w["kl"])),
                f"{w['name']}, token {w['position']}",
                _line("".join(pieces[:at])),
                named(pieces[at]),
                _line("".join(pieces[at + 1 :])),
                *map(_likeliest, sides),
            )
        )
    return found


def _line(text: str) -> str:
    return visible(text).replace("↵\n", "↵ ")


def _likeliest(opinion: Opinion) -> str:
    """The likeliest piece with its share, and that of the piece that came."""
    if not opinion.choices:
        return "–"
    piece, share = opinion.choices[0]
    came = "" if opinion.came is None else f"; gave it {100 * opinion.came:.2g} %"
    return f"{named(piece)} {100 * share:.2g} %{came}"
