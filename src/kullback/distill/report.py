"""report.html: one file that needs no other; and the words that it shares with the terminal."""

from typing import Any

from kullback.kit import page
from kullback.kit.numbers import Summary

from . import measures, pictures
from .results import MEASURES, Results
from .training import KINDS

TITLES = {"accuracy": "accuracy, %", "nll": "NLL", "ece": "ECE", "kl": "KL(t‖s)", "seconds": "train s"}


def table_rows(results: Results) -> list[list[str]]:
    """Header and one row for the teacher and for each student: the table of the command and of the report."""
    header = ["", *TITLES.values(), "parameters"]
    rows = [header]
    if results.teacher is not None:
        measured = results.teacher_measures
        seconds, parameters = results.teacher.seconds, results.teacher.parameters
        rows.append(
            [
                "the teacher",
                *(number(m, measured[m]) for m in ("accuracy", "nll", "ece")),
                "0",
                "–" if seconds is None else number("seconds", seconds),
                "–" if parameters is None else f"{parameters:,}",
            ]
        )
    for kind in KINDS:
        cells = [plus_minus(m, results.summary(kind, m)) for m in MEASURES]
        rows.append([kind, *cells, f"{results.student_parameters:,}"])
    return rows


def caption(results: Results) -> str:
    """What the numbers of the table are, in one paragraph."""
    settings, split, teacher = results.settings, results.split, results.teacher
    seeds = f"mean ± standard error over {settings.seeds} seeds" if settings.seeds > 1 else "one seed, so no error"
    saw, train = (teacher.saw_labels if teacher else 0), len(split.train)
    whose = f"all {train:,}" if saw == train else f"{saw:,} of the {train:,}"
    origin = (
        f"The teacher was trained with the labels of {whose} training rows"
        if saw
        else "The teacher's predictions were given; what it was trained on is not known here"
    )
    return (
        f"Measured on {len(split.held_out):,} held-out rows; students: {seeds}. {origin}; a student sees the labels of "
        f"{len(results.labelled):,} training rows and, where it says teacher or both, the teacher's predictions for "
        f"all {train:,}. All students: same network, same initialisation by seed, same number of steps and of "
        "rows per step; a student's share of the seconds that it was trained beside others. NLL and "
        f"KL(teacher‖student) in nats, at temperature 1; ECE with {measures.CALIBRATION_BINS} equal-width bins."
    )


def verdict(results: Results) -> str:
    """The best student, and how far it is ahead of each other one, paired by seed."""
    ranking = results.ranking()
    if not ranking:
        return "No student was finished."
    best, *others = ranking
    summary = results.summary(best, "accuracy")
    assert summary is not None
    text = f"Best student: {best}, right on {number('accuracy', summary.mean)} % of the held-out rows."
    leads, close = [], []
    for other in others:
        lead = results.difference(best, other, "accuracy")
        if lead is None:
            continue
        leads.append(f"{plus_minus('accuracy', lead)} points over {other}")
        if lead.stderr is not None and lead.mean <= 2 * lead.stderr:
            close.append(other)
    if not leads:
        return text
    errors = "one seed, so no standard error"
    if results.settings.seeds > 1:
        errors = f"± standard error, paired over {len(summary.values)} seeds"
        within = f"not beyond two standard errors over {' and '.join(close)}" if close else ""
        errors += f"; {within or 'each is more than two standard errors'}"
    return f"{text} It leads by {' and by '.join(leads)} ({errors})."


def number(measure: str, value: float) -> str:
    """As many digits as the measure deserves."""
    return f"{value * 100:.2f}" if measure == "accuracy" else f"{value:.1f}" if measure == "seconds" else f"{value:.3f}"


def plus_minus(measure: str, summary: Summary | None) -> str:
    """mean ± standard error; seconds as their mean alone."""
    if summary is None:
        return "not finished"
    if summary.stderr is None or measure == "seconds":
        return number(measure, summary.mean)
    return f"{number(measure, summary.mean)} ± {number(measure, summary.stderr)}"


def notes(results: Results) -> list[str]:
    """What else a reader should know: of the data, the teacher, the curves."""
    held_out = len(results.split.held_out)
    looked = f"The curves are measured on {pictures.CURVE_ROWS:,} held-out rows, all other numbers on {held_out:,}"
    return [
        *results.table.notes,
        *(results.teacher.notes if results.teacher else ()),
        *([looked] if held_out > pictures.CURVE_ROWS else []),
    ]


def settings_shown(results: Results) -> dict[str, str]:
    """Every choice as it took effect."""
    named = {"data": results.table.name, "out": str(results.folder)}
    named["teacher_rows"] = f"{results.teacher.saw_labels:,}" if results.teacher and results.teacher.saw_labels else "-"
    return {name: named.get(name, _shown(value)) for name, value in results.settings.to_json().items()}


def render(results: Results) -> str:
    """The page."""
    images = []
    if results.table.image_shape is not None:
        for position in pictures.example_rows(results):
            row = int(results.split.held_out[position])
            label = f"Held-out row {row}: picture, and probabilities by the teacher, labels only, both"
            images.append((pictures.image_picture(results, position), label))
    return page.render(
        __package__,
        "report.html.j2",
        of="distill",
        results=results,
        rows=table_rows(results),
        caption=caption(results),
        verdict=verdict(results),
        charts=[(title, text, draw(results)) for title, text, draw in _charts(results)],
        images=images,
        notes=notes(results),
        settings=settings_shown(results),
        kept=f"both, seed {results.settings.seed}",
    )


def _charts(results: Results) -> list[tuple[str, str, Any]]:
    settings = results.settings
    over = f"Line: mean over {settings.seeds} seeds; band: ± one standard deviation." if settings.seeds > 1 else ""
    few = len(settings.sweep_seed_range())
    charts = [
        ("Accuracy while learning", over, pictures.summary_picture),
        ("Loss while learning", f"Negative log-likelihood of the held-out labels. {over}", pictures.loss_picture),
        (
            "Accuracy against temperature",
            f"The student of both, {few} seed{'s' * (few != 1)} a temperature"
            f"{'; bars: standard error' if few > 1 else ''}.",
            pictures.temperature_picture,
        ),
        (
            "Reliability",
            f"{measures.CALIBRATION_BINS} equal-width bins, all seeds together; bins of fewer than "
            f"{pictures.SMALLEST_BIN} rows are left out.",
            pictures.reliability_picture,
        ),
        (
            "Where student and teacher differ",
            "KL(teacher‖student) in nats, mean over the held-out rows of each class"
            f"{'; bars: standard error over seeds' if settings.seeds > 1 else ''}.",
            pictures.class_picture,
        ),
    ]
    return [chart for chart in charts if chart[2] is not pictures.temperature_picture or results.sweep]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
