"""What was found, for people: the rows of the terminal's table, and report.html, which needs no other file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kullback.kit import page

from .job import Cell, ColumnDrift, Drift, Rule
from .watching import Watch

NAMES = {"kl": "KL(ref‖cur)", "kl_reverse": "KL(cur‖ref)", "js": "JS", "psi": "PSI"}
LAWS = {"chi2": "χ²", "permutation": "permutation", "clusters": "permutation of clusters"}
PICTURES = 24  # columns with bars of their own; the others stand in the table
BARS = 24  # cells with bars


def table_rows(found: Drift) -> list[list[str]]:
    """Header and one row a column: every effect with its interval would not fit, so the decisive one has its own."""
    measure = found.rule.measure
    others = [name for name in NAMES if name != measure]
    header = ["column", "drift", NAMES[measure], f"{100 * found.rule.level:g} %", *(NAMES[o] for o in others), "p adj."]
    rows = [header]
    for one in found.columns:
        if one.test is None:
            rows.append([one.title, "not compared", *["–"] * (len(header) - 2)])
            continue
        effect = one.effects[measure]
        cells = [one.title, decision(one, found.rule), number(effect.value), interval(effect)]
        rows.append([*cells, *(number(one.effects[o].value) for o in others), p_value(one)])
    return rows


def decision(one: ColumnDrift, rule: Rule) -> str:
    """In one or two words."""
    if one.drift:
        return "DRIFT"
    return "small" if one.p_adjusted <= rule.alpha else "no"


def verdict(found: Drift) -> str:
    """In one sentence."""
    drifted, tested = found.drifted, [one for one in found.columns if one.test is not None]
    rule = found.rule
    asked = f"{NAMES[rule.measure]} ≥ {rule.smallest:g} nats and {_adjusted(rule)} ≤ {rule.alpha:g}"
    unit = "columns" if found.by is None else "columns of groups"
    if not drifted:
        chance = sum(one.p_adjusted <= rule.alpha for one in tested)
        beyond = f"; {chance} differ by more than chance, but by less than matters" if chance else ""
        return f"No drift: none of {len(tested)} {unit} has {asked}{beyond}"
    names = ", ".join(one.title for one in drifted[:5]) + (", ..." if len(drifted) > 5 else "")
    return f"Drift in {len(drifted)} of {len(tested)} {unit} ({names}): {asked}"


def number(value: float) -> str:
    """Nats, to three digits; what lies below chance is 0.

    >>> number(0.012345), number(-0.001), number(1.5)
    ('0.0123', '0', '1.50')
    """
    if math.isinf(value):
        return "∞"
    if value <= 0.0:
        return "0"
    return f"{value:.1e}" if value < 1e-3 else f"{value:#.3g}"


def interval(effect: Any) -> str:
    """Low to high."""
    return f"{number(effect.low)} – {number(effect.high)}"


def p_value(one: ColumnDrift) -> str:
    """Adjusted; below what the draws can tell, as a bound."""
    assert one.test is not None
    least = 0.5 / (one.test.draws + 1) if one.test.draws else 0.0
    p = one.p_adjusted
    if one.test.draws and one.test.p_value <= least:
        return f"< {p:.1g}"
    return "< 1e-99" if p < 1e-99 else f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"


def details(one: ColumnDrift) -> str:
    """What stands under a column: its test, and what is to be known of it."""
    said = []
    if one.test is not None:
        law = LAWS[one.test.law] + (
            f" of {one.test.draws:,} draws" if one.test.draws else f" with {one.test.df:.0f} degrees"
        )
        said.append(f"T = {one.test.statistic:.4g} ({law}), p = {one.test.p_value:.2g}")
    return "; ".join([*said, *one.marks])


@dataclass(frozen=True)
class Bar:
    """One cell, as the page draws it: shares in per cent, lengths in per cent of the longest."""

    label: str
    reference: float
    current: float
    reference_length: float
    current_length: float
    contribution: str
    strength: float


def bars(one: ColumnDrift) -> list[Bar]:
    """The cells of a column; of many, those that contribute most, the rest together."""
    cells = list(one.cells)
    if len(cells) > BARS:
        kept = {id(cell) for cell in sorted(cells, key=lambda cell: -cell.contribution)[: BARS - 1]}
        rest = [cell for cell in cells if id(cell) not in kept]
        together = Cell(
            f"{len(rest)} others",
            sum(cell.reference for cell in rest),
            sum(cell.current for cell in rest),
            math.fsum(cell.contribution for cell in rest),
        )
        cells = [*(cell for cell in cells if id(cell) in kept), together]
    n, m = max(one.rows[0], 1), max(one.rows[1], 1)
    longest = max(max(cell.reference / n, cell.current / m) for cell in cells)
    strongest = max(cell.contribution for cell in cells) or 1.0
    return [
        Bar(
            cell.label,
            100.0 * cell.reference / n,
            100.0 * cell.current / m,
            100.0 * cell.reference / n / longest,
            100.0 * cell.current / m / longest,
            number(cell.contribution),
            100.0 * cell.contribution / strongest,
        )
        for cell in cells
    ]


@dataclass(frozen=True)
class Range:
    """An effect on the page's axis, √KL, on which equal shifts are equal steps; in per cent of its width."""

    title: str
    low: float
    value: float
    high: float
    text: str
    drift: bool


def ranges(found: Drift) -> tuple[list[Range], list[tuple[float, str]], float]:
    """The effects of all columns, the ticks of their axis, and where the smallest effect that matters lies."""
    measure = found.rule.measure
    shown = [one for one in found.columns if one.effects]
    tops = [min(one.effects[measure].high, 20.0) for one in shown]
    top = max([*tops, 4.0 * found.rule.smallest, 1e-6])

    def at(value: float) -> float:
        return 100.0 * math.sqrt(min(max(value, 0.0), top) / top)

    lines = [
        Range(
            one.title,
            at(one.effects[measure].low),
            at(one.effects[measure].value),
            at(one.effects[measure].high),
            f"{number(one.effects[measure].value)} ({interval(one.effects[measure])})",
            one.drift,
        )
        for one in shown
    ]
    steps = [10.0**k * d for k in range(-6, 2) for d in (1, 2, 5)]
    ticks: list[tuple[float, str]] = []
    for step in steps:
        if step <= top and (not ticks or at(step) - ticks[-1][0] > 18.0) and 18.0 < at(step) < 97.0:
            ticks.append((at(step), f"{step:g}"))
    return lines, ticks, at(found.rule.smallest)


def render(found: Drift) -> str:
    """The page of `drift`."""
    lines, ticks, smallest = ranges(found)
    shown = [one for one in found.columns if one.cells][:PICTURES]
    return page.render(
        __package__,
        "report.html.j2",
        of="data",
        found=found,
        verdict=verdict(found),
        rows=table_rows(found),
        names=NAMES,
        lines=lines,
        ticks=ticks,
        smallest=smallest,
        columns=[(one, bars(one), details(one)) for one in shown],
        left_out=len(found.columns) - len(shown),
        joint=None if found.joint is None else joint_rows(found),
        explain=_adjusted(found.rule),
        number=number,
        interval=interval,
    )


def joint_rows(found: Drift) -> list[list[str]]:
    """The chain rule as a table."""
    assert found.joint is not None
    rows = [["part", "KL", "share", "p"]]
    total = sum(max(part.value, 0.0) for part in found.joint.parts) or 1.0
    for part in found.joint.parts:
        name = part.column + (f" | {', '.join(part.given)}" if part.given else "")
        share = f"{100 * max(part.value, 0.0) / total:.0f} %"
        rows.append([name, number(part.value), share, f"{part.p_value:.2g}"])
    rows.append(["all together", number(found.joint.value), "", f"{found.joint.p_value:.2g}"])
    return rows


def watch_rows(found: Watch) -> list[list[str]]:
    """Header and one row an alarm."""
    rows = [["window", "rows", "column", "KL(ref‖cur)", "threshold", "moved most"]]
    for alarm in found.alarms:
        moved = ", ".join(f"{cell.label} ({number(cell.contribution)})" for cell in alarm.moved[:2])
        rows.append([alarm.window, f"{alarm.rows:,}", alarm.column, number(alarm.kl), number(alarm.threshold), moved])
    return rows


def _adjusted(rule: Rule) -> str:
    return {"holm": "p (Holm)", "bh": "p (Benjamini-Hochberg)", "none": "p"}[rule.adjust]


def paragraphs(found: Drift) -> Sequence[str]:
    """What the terminal says under the table."""
    said = [f"{found.reference}: {found.rows[0]:,} rows; {found.current}: {found.rows[1]:,} rows. In nats."]
    for one in found.columns:
        if one.marks and (one.drift or one.test is None or one.new or one.vanished):
            said.append(f"{one.title}: {'; '.join(one.marks)}")
    said += [f"{name}: not compared, it holds {dtype}" for name, dtype in found.skipped.items()]
    return [*said, *found.notes]
