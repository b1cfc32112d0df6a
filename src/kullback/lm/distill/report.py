"""report.html of `kullback lm distill`: one file that needs no other. Every number in it was computed before."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kullback.kit import page
from kullback.kit.numbers import significant, with_error
from kullback.kit.passages import Layer, Opinion, Passage, prepare

from . import pictures

Number = Mapping[str, Any]  # value, stderr, low, high


def render(results: Mapping[str, Any]) -> str:
    """The page of a run, from the document that results.json holds."""
    shown = [_passage(example) for example in results.get("examples", ())]
    return page.render(
        __package__,
        "report.html.j2",
        of="lm",
        scripts=("tables.js", "passages.js"),
        results=results,
        verdict=verdict(results),
        rows=table_rows(results),
        charts=[(title, said, draw()) for title, said, draw in _charts(results)],
        shown=prepare(shown, unit="KL", number=significant) if shown else None,
        percent=f"{100 * results['level']:g} %",
        settings={name: _setting(value) for name, value in results["settings"].items()},
    )


def verdict(results: Mapping[str, Any]) -> str:
    """How much nearer to the teacher the student is that learns from it, and how sure that is."""
    said = ["Stopped before its end: what is here is of what was finished."] if results["status"] != "complete" else []
    students = [one for one in results["students"] if one.get("kl")]
    if len(students) < 2 or not results.get("difference"):
        return " ".join([*said, "There are no two students to compare."])
    first, second = students[:2]
    gap, ratio = results["difference"]["kl"], results["difference"]["perplexity_ratio"]
    level = f"{100 * results['level']:g} %"
    said.append(
        f"On held-out text the student {first['name']} is {plus_minus(first['kl'])} nats a token from the teacher, "
        f"the one {second['name']} {plus_minus(second['kl'])}: a difference of {plus_minus(gap)}{_within(gap, level)}."
    )
    if (spread := gap.get("stderr_over_seeds")) is not None:
        each = ", ".join(significant(value) for value in gap["by_seed"])
        said.append(f"Seed by seed the difference is {each}, on average ± {significant(spread, 2)} over seeds.")
    if ratio and ratio["value"] is not None:
        sure = ratio["low"] is not None and not ratio["low"] <= 1.0 <= ratio["high"]
        than = "lower" if ratio["value"] < 1.0 else "higher"
        percent = f"{100 * abs(ratio['value'] - 1):.1f} %"
        chance = "" if sure else ", which may be chance"
        said.append(f"Its perplexity is {percent} {than}{_within(ratio, level, 'ratio ')}{chance}.")
    return " ".join(said)


def _within(number: Number, level: str, what: str = "") -> str:
    if number["low"] is None:
        return ""
    return f" ({level}: {what}{significant(number['low'])} to {significant(number['high'])})"


def plus_minus(number: Number | None) -> str:
    """value ± standard error."""
    return "–" if number is None else with_error(number["value"], number["stderr"])


def interval(number: Number | None) -> str:
    """Low to high."""
    if number is None or number["low"] is None:
        return "–"
    return f"{significant(number['low'])} … {significant(number['high'])}"


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each student, and the teacher."""
    level = f"{100 * results['level']:g} % interval"
    training = ("parameters", "steps", "seconds")
    rows = [["", "KL(teacher‖student)", level, "± over seeds", "perplexity", "same top, %", *training]]
    for one in results["students"]:
        rows.append(
            [
                one["name"],
                plus_minus(one.get("kl")),
                interval(one.get("kl")),
                significant((one.get("kl") or {}).get("stderr_over_seeds"), 2),
                plus_minus(one.get("perplexity")),
                plus_minus(_percent(one.get("same_top"))),
                *(_whole(one.get(key)) for key in training),
            ]
        )
    teacher = results["teacher"]
    perplexity = teacher.get("perplexity")
    size = _whole(teacher.get("parameters"))
    steps = _whole(teacher.get("trained_steps"))
    rows.append(["the teacher", "0", "–", "–", plus_minus(perplexity), "100", size, steps, "–"])
    return rows


def _percent(share: Number | None) -> Number | None:
    if share is None:
        return None
    return {key: None if share[key] is None else 100.0 * share[key] for key in ("value", "stderr", "low", "high")}


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _charts(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[], str]]]:
    students = [one for one in results["students"] if any(one.get("curves", ()))]
    if not students:
        return
    seeds = max(len(one["curves"]) for one in students)
    each = f" A line for each of {seeds} seeds." if seeds > 1 else ""
    perplexity = results["teacher"].get("perplexity")
    level = None if not perplexity or not perplexity["value"] else math.log(perplexity["value"])
    yield (
        "KL from the teacher while learning",
        f"KL(teacher‖student) on held-out text, nats a token.{each}",
        lambda: pictures.curves_picture(students, "kl", "KL(teacher‖student), nats a token"),
    )
    yield (
        "Loss while learning",
        f"Negative log-likelihood of held-out text, nats a token.{each}",
        lambda: pictures.curves_picture(students, "loss", "held-out loss, nats a token", level),
    )


def _passage(example: Mapping[str, Any]) -> Passage:
    """An example's text, with the KL of each student and what it and the teacher held likely."""
    teacher = example["teacher"]
    layers = []
    for name, student in example["students"].items():
        opinions = [
            () if value is None else (_opinion("the teacher", teacher, i), _opinion("the student", student, i))
            for i, value in enumerate(student["kl"])
        ]
        layers.append(Layer(f"the student {name}", student["kl"], opinions))
    return Passage(example["title"], example["pieces"], layers)


def _opinion(name: str, side: Mapping[str, Any], i: int) -> Opinion:
    return Opinion(name, tuple((text, share) for text, share in side["choices"][i]), side["came"][i])


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
