"""Text in pieces with a number each: coloured by it, and with a box that says what each side held likely there.

Pieces are text from outside: what cannot be seen, or would change how the page runs, is written out (`visible`).
"""

import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

LEVELS = 7  # colours above none
_MARKS = {"\t": "⇥\t", "\n": "↵\n"}


@dataclass(frozen=True)
class Opinion:
    """What a side held likely in place of a piece: texts with their shares, and the share of the piece itself."""

    side: str
    choices: tuple[tuple[str, float], ...]
    came: float | None = None


Box: TypeAlias = tuple[Opinion, ...]


@dataclass(frozen=True)
class Layer:
    """One colouring of a passage: a number and the opinions for each piece; None where the piece has none."""

    name: str
    values: Sequence[float | None]
    opinions: Sequence[Box]


@dataclass(frozen=True)
class Passage:
    """Text in pieces, with the same layers as every other passage of the page."""

    title: str
    pieces: Sequence[str]
    layers: Sequence[Layer]


def visible(text: str) -> str:
    """The text with a sign for all that cannot be seen or that acts on what surrounds it.

    Line ends keep their break. Controls and bytes that are no UTF-8 (U+DC80 to U+DCFF, as `errors="surrogateescape"`
    keeps them) become their number; so do marks of direction, separators and unassigned points.

    >>> visible("a\\tb\\n"), visible("\\x00\\u202e"), visible(b"\\xe2\\x80".decode(errors="surrogateescape"))
    ('a⇥\\tb↵\\n', '⟨00⟩⟨U+202E⟩', '⟨E2⟩⟨80⟩')
    """
    return "".join(map(_seen, text))


def _seen(one: str) -> str:
    if one in _MARKS:
        return _MARKS[one]
    code = ord(one)
    if code < 0x20 or code == 0x7F or 0xDC80 <= code <= 0xDCFF:
        return f"⟨{code & 0xFF:02X}⟩"
    if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return one


def named(text: str) -> str:
    """The text as one line in which leading and trailing spaces show.

    >>> named(" the"), named("\\n"), named("")
    ('␣the', '↵', '(nothing)')
    """
    line = visible(text).replace("↵\n", "↵").replace("⇥\t", "⇥")
    inner = line.strip(" ")
    front = len(line) - len(line.lstrip(" "))
    back = len(line) - front - len(inner)
    return "␣" * front + inner + "␣" * back or "(nothing)"


def bounds(values: Iterable[float | None], count: int = LEVELS) -> list[float]:
    """Lower ends of the colours, rising up to the largest value, in the finest of three steps that leaves no more than
    half of the positive numbers below the lowest: thirds of a decade (1, 2, 5, 10), halves (1, 3, 10), or decades.

    >>> bounds([2.0, 4.0, 5.0, None], count=3), bounds([0.4, 0.4, 5.0], count=3), bounds([0.01, 0.01, 5.0], count=3)
    ([1.0, 2.0, 5.0], [0.3, 1.0, 3.0], [0.01, 0.1, 1.0])
    """
    positive = sorted(v for v in values if v is not None and 0.0 < v < math.inf)
    if not positive:
        return [10.0 ** (k - count + 1) for k in range(count)]
    for series in ((1, 2, 5), (1, 3), (1,)):
        top = math.floor(math.log10(positive[-1])) * len(series)
        while _rounded_step(top + 1, series) <= positive[-1]:
            top += 1
        found = [_rounded_step(top - k, series) for k in reversed(range(count))]
        if found[0] <= positive[len(positive) // 2]:
            break
    return found


def _rounded_step(k: int, series: tuple[int, ...]) -> float:
    """The k-th of the series continued over the decades, up and down; the 0-th is 1."""
    return float(f"{series[k % len(series)]}e{k // len(series)}")


def level(value: float | None, lowest: Sequence[float]) -> int:
    """The colour of a value, 0 for none."""
    return 0 if value is None else sum(value >= low for low in lowest)


@dataclass(frozen=True)
class Prepared:
    """What the part "passages" of a page is made of."""

    passages: list[tuple[str, list[tuple[str, str, bool]]]]  # title; text, class and whether it takes the focus
    layers: list[str]
    legends: list[list[tuple[int, str]]]  # a scale of colours for each layer, or one for all
    data: dict[str, Any]


def prepare(
    passages: Sequence[Passage], *, unit: str, number: Callable[[float], str], one_scale: bool = True
) -> Prepared:
    """Passages for the page's `passages`, which shows them with the first layer, and offers the others.

    Args:
        unit: what the numbers are, as it stands before them in the box.
        number: how one is written.
        one_scale: whether a colour means the same in all layers; else each has the scale that shows most of it.
    """
    layers = [layer.name for layer in passages[0].layers] if passages else []
    pooled = [[v for passage in passages for v in passage.layers[i].values] for i in range(len(layers))]
    whole = [v for values in pooled for v in values]
    scales = [bounds(whole)] * len(layers) if one_scale else [bounds(values) for values in pooled]
    strings: dict[str, int] = {}
    sides: dict[str, int] = {}

    def string(text: str) -> int:
        return strings.setdefault(text, len(strings))

    def side(one: Opinion) -> int:
        shares: list[float] = [x for text, p in one.choices for x in (string(named(text)), _rounded(p))]
        made = [string(one.side), None if one.came is None else _rounded(one.came), shares]
        return sides.setdefault(json.dumps(made), len(sides))

    shown, data = [], []
    for passage in passages:
        levels = [
            [level(v, lowest) if v is not None else "n" for v in layer.values]
            for layer, lowest in zip(passage.layers, scales, strict=True)
        ]
        boxes = [
            [
                0 if v is None else [number(v), *map(side, box)]
                for v, box in zip(layer.values, layer.opinions, strict=True)
            ]
            for layer in passage.layers
        ]
        first = next((i for i, box in enumerate(boxes[0]) if box), -1)
        texts = [
            (visible(piece) or "⟨⟩", f"t l{colour}", i == first)
            for i, (piece, colour) in enumerate(zip(passage.pieces, levels[0], strict=True))
        ]
        shown.append((passage.title, texts))
        data.append({"levels": ["".join(map(str, row)) for row in levels], "boxes": boxes})
    return Prepared(
        shown,
        layers,
        [
            [(0, f"< {lowest[0]:g}"), *((k + 1, f"{low:g}") for k, low in enumerate(lowest))]
            for lowest in (scales[:1] if one_scale else scales)
        ],
        {"unit": unit, "strings": list(strings), "sides": list(map(json.loads, sides)), "passages": data},
    )


def _rounded(share: float) -> float:
    return float(f"{share:.4g}") if math.isfinite(share) else 0.0
