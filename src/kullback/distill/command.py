"""The sub-command `kullback distill`: reads options, shows progress, prints."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .errors import BadInput, MissingExtra
from .job import Results, run
from .report import caption, table_rows, verdict
from .run_folder import dump_json
from .settings import DIVERGENCE_CHOICES, Settings

_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
_SWEEP = ",".join(map("{:g}".format, Settings.sweep))


def distill(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="CSV or Parquet file of numeric features and a class column. Default: scikit-learn's digits."
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
    labels: Annotated[
        int | None, typer.Option(help="Training rows that keep their label. Default: ten per class.")
    ] = _DEFAULTS["labels"],
    epochs: Annotated[int, typer.Option(help="Epochs of each student.")] = _DEFAULTS["epochs"],
    batch_size: Annotated[int, typer.Option(help="Rows in a step.")] = _DEFAULTS["batch_size"],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Distil a teacher into a small student, and see what the teacher brings when labels are few.

    Trains three students with the same budget: on few labels, on the teacher's probabilities, and on both.
    """
    messages = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        settings = Settings(
            data=data,
            target=target,
            drop=tuple(drop or ()),
            teacher=teacher,
            divergence=divergence,
            temperature=temperature,
            soft_weight=soft_weight,
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
        results = _run(settings, messages)
    except (BadInput, MissingExtra) as error:
        messages.print(f"kullback distill: {' '.join(str(error).split())}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        if stop.args and isinstance(stop.args[0], Results):
            partial = stop.args[0]
            messages.print(f"kullback distill: interrupted; {partial.folder} holds what was finished, as incomplete")
            if as_json:
                print(dump_json(partial.to_json()))
        else:
            messages.print("kullback distill: interrupted before anything was written")
        raise typer.Exit(130) from None
    if as_json:
        print(dump_json(results.to_json()))
    else:
        _show(results)


def _run(settings: Settings, messages: Console) -> Results:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as progress:
        task = progress.add_task("reading", total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        results = run(settings, show)
        progress.update(task, description="done")
    return results


def _show(results: Results) -> None:
    console = Console(highlight=False, markup=False)
    header, *rows = table_rows(results, {"labels": "labels only", "teacher": "teacher only", "both": "both"})
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        title=f"{results.table.name}: held-out rows",
    )  # 80 columns wide
    header, rows = header[:-1], [row[:-1] for row in rows]  # parameters follow below
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(caption(results))
    console.print()
    assert results.teacher is not None
    console.print(f"Teacher: {results.teacher.description}")
    size = results.teacher.parameters
    console.print(f"Parameters: student {results.student_parameters:,}" + (f", teacher {size:,}" if size else ""))
    for note in results.teacher.notes:
        console.print(f"Note: {note}")
    console.print(f"{verdict(results)}.", style="bold")
    console.print(f"Report: {results.folder / 'report.html'} ({results.seconds:.0f} s)", soft_wrap=True)


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadInput(f"--sweep {text!r} is no list of temperatures; write 1,2,4, for example") from None
