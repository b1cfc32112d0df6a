"""report.html: one file that needs no other."""

from collections.abc import Mapping
from typing import Any

from kullback.kit import page
from kullback.kit.numbers import Summary

from . import measures, pictures
from .results import MEASURES, Results
from .training import KINDS, Kind

TITLES = {"accuracy": "accuracy, %", "nll": "NLL", "ece": "ECE", "kl": "KL(t‖s)", "seconds": "train s"}


def table_rows(results: Results, names: Mapping[Kind, str] = pictures.NAMES) -> list[list[str]]:
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
        rows.append([names[kind], *cells, f"{results.student_parameters:,}"])
    return rows


def caption(results: Results) -> str:
    """What the numbers of the table are, in one paragraph."""
    settings, split = results.settings, results.split
    seeds = f"mean ± standard error over {settings.seeds} seeds" if settings.seeds > 1 else "one seed, so no error"
    saw = results.teacher is not None and results.teacher.saw_train_labels
    origin = (
        f"The teacher was trained with the labels of all {len(split.train)} training rows"
        if saw
        else "The teacher's predictions were given; what it was trained on is not known here"
    )
    return (
        f"Measured on {len(split.held_out)} held-out rows; students: {seeds}. {origin}; a student sees the labels of "
        f"{len(results.labelled)} of them and, where it says teacher, the teacher's predictions for all "
        f"{len(split.train)}. All students: same network, same initialisation by seed, same number of steps and of "
        "rows per step. NLL and KL(teacher‖student) in nats, at temperature 1; ECE with "
        f"{measures.CALIBRATION_BINS} equal-width bins."
    )


def verdict(results: Results) -> str:
    """The paired difference between the student of both and that of labels only, in words."""
    gain = results.difference("both", "labels", "accuracy")
    if gain is None:
        return "No pair of students was finished."
    text = f"teacher and labels - labels only: accuracy {gain.mean * 100:+.2f} points"
    if gain.stderr is None:
        return f"{text} (one seed, so no standard error)"
    text += f" ± {gain.stderr * 100:.2f} (standard error, paired over {len(gain.values)} seeds)"
    if abs(gain.mean) > 2 * gain.stderr:
        return f"{text}: {'better' if gain.mean > 0 else 'worse'} by more than two standard errors"
    return f"{text}: no difference beyond two standard errors"


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


def render(results: Results) -> str:
    """The page."""
    images = []
    if results.table.image_shape is not None:
        for position in pictures.example_rows(results):
            row = int(results.split.held_out[position])
            label = f"Held-out row {row}: picture, and probabilities by the teacher, labels only, teacher and labels"
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
        settings=results.settings.to_json(),
        kept=f"both, seed {results.settings.seed}",
    )


def _charts(results: Results) -> list[tuple[str, str, Any]]:
    settings = results.settings
    over = f"Line: mean over {settings.seeds} seeds; band: ± one standard deviation." if settings.seeds > 1 else ""
    few = min(settings.sweep_seeds, settings.seeds)
    return [
        ("Accuracy while learning", over, pictures.summary_picture),
        ("Loss while learning", f"Negative log-likelihood of the held-out labels. {over}", pictures.loss_picture),
        (
            "Accuracy against temperature",
            f"The student of teacher and labels, {few} seed{'s' * (few != 1)} a temperature; bars: standard error.",
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
            "KL(teacher‖student) in nats, mean over the held-out rows of each class; bars: standard error over seeds.",
            pictures.class_picture,
        ),
    ]
