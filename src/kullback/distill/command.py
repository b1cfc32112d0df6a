"""The sub-command `kullback distill`: reads options, shows progress, prints."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from kullback._errors import BadInput
from kullback.kit.ending import ending
from kullback.kit.files import dump_json
from kullback.kit.runs import carry_out, resumed_alone
from kullback.kit.terminal import paragraph, show_table
from kullback.kit.unfinished import finished
from kullback.losses.named import DIVERGENCE_CHOICES

from . import job
from .job import Begun, Progress
from .report import caption, notes, table_rows, verdict
from .results import Results
from .settings import Settings

_NAME = "kullback distill"
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
_SWEEP = ",".join(map("{:g}".format, Settings.sweep))


def distill(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="CSV or Parquet file of features (numbers, or text with few different values) and a class column. "
            "Default: scikit-learn's digits."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The class column of DATA.", metavar="COLUMN")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave a column out; may be repeated.", metavar="COLUMN")
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="'network'; the name of a scikit-learn classifier with predict_proba; or a CSV, Parquet or npy FILE "
            "with one row per row of DATA and one column per class. A file whose rows are non-negative and sum to one "
            "holds probabilities, any other logits."
        ),
    ] = _DEFAULTS["teacher"],
    divergence: Annotated[
        str, typer.Option(help=f"What the student minimises, teacher first: {', '.join(DIVERGENCE_CHOICES)}.")
    ] = _DEFAULTS["divergence"],
    temperature: Annotated[float, typer.Option(help="T, of the soft term.")] = _DEFAULTS["temperature"],
    soft_weight: Annotated[float, typer.Option(help="Weight of the teacher in the student of both.")] = _DEFAULTS[
        "soft_weight"
    ],
    teacher_rows: Annotated[
        int | None,
        typer.Option(
            help="Training rows that a teacher trained here learns from. Default: all, but a bounded number for a "
            "classifier whose cost grows faster than its rows, such as GaussianProcessClassifier."
        ),
    ] = _DEFAULTS["teacher_rows"],
    labels: Annotated[
        int | None, typer.Option(help="Training rows that keep their label. Default: ten per class.")
    ] = _DEFAULTS["labels"],
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of each student. Default: 40, fewer from 20,000 training rows on, 20 at least."),
    ] = _DEFAULTS["epochs"],
    batch_size: Annotated[
        int | None, typer.Option(help="Rows in a step. Default: 64, growing with the root of the training rows.")
    ] = _DEFAULTS["batch_size"],
    hidden: Annotated[int, typer.Option(help="Width of the student's hidden layer.")] = _DEFAULTS["hidden"],
    seeds: Annotated[int, typer.Option(help="How often each student is trained.")] = _DEFAULTS["seeds"],
    seed: Annotated[int, typer.Option(help="The first seed; also of the split and the teacher.")] = _DEFAULTS["seed"],
    test_size: Annotated[float, typer.Option(help="Share of rows held out.")] = _DEFAULTS["test_size"],
    sweep: Annotated[
        str, typer.Option(help="Temperatures to compare, with commas between; empty for none.", metavar="T,T,...")
    ] = _SWEEP,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: kullback-distill-<date>-<time>.", metavar="FOLDER")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = _DEFAULTS["device"],
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with a run that was stopped, with the settings it was begun with, to the same results.",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Distil a teacher into a small student, and see what the teacher brings when labels are few.

    Trains three students with the same budget: on few labels, on the teacher's probabilities, and on both.
    """
    with ending(_NAME):
        if resume is not None:
            resumed_alone(context)
            if (document := finished(resume)) is not None:
                print(dump_json(document) if as_json else f"Complete already. Report: {resume / 'report.html'}")
                return
            _do(lambda show, begun: job.resume(resume, show, begun), as_json)
            return
        settings = Settings(
            data=data,
            target=target,
            drop=tuple(drop or ()),
            teacher=teacher,
            divergence=divergence,
            temperature=temperature,
            soft_weight=soft_weight,
            teacher_rows=teacher_rows,
            labels=labels,
            epochs=epochs,
            batch_size=batch_size,
            hidden=hidden,
            seeds=seeds,
            seed=seed,
            test_size=test_size,
            sweep=_temperatures(sweep),
            out=out,
            device=device,
        )
        _do(lambda show, begun: job.run(settings, show, begun), as_json)


def _do(work: Callable[[Progress, Begun], Results], as_json: bool) -> None:
    results: Results = carry_out(_NAME, work, as_json=as_json, of="distill")
    if as_json:
        print(dump_json(results.to_json()))
    else:
        _show(results)


def _show(results: Results) -> None:
    header, *rows = table_rows(results)
    header, rows = header[:-1], [row[:-1] for row in rows]  # parameters follow below; 80 columns wide
    show_table(header, rows, of="distill", title=f"{results.table.name}: held-out rows")
    assert results.teacher is not None
    size = results.teacher.parameters
    print(
        paragraph(caption(results)),
        "",
        f"Teacher: {results.teacher.description}",
        f"Parameters: student {results.student_parameters:,}" + (f", teacher {size:,}" if size else ""),
        *(paragraph(f"Note: {note}") for note in notes(results)),
        paragraph(verdict(results)),
        f"Report: {results.folder / 'report.html'} ({results.seconds:.0f} s)",
        sep="\n",
    )


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"--sweep {text!r} is no list of temperatures; write 1,2,4, for example") from None
