"""The sub-commands `kullback drift`, `kullback drift profile`, `kullback drift watch`: options, printing, exit codes.

Exit codes: 0 no drift, 1 drift, 2 error.
"""

import atexit
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kullback._errors import BadInput
from kullback.kit.ending import ending
from kullback.kit.files import check_file, check_free, dump_json, new_folder, write_bytes, write_json
from kullback.kit.progress import progress
from kullback.kit.terminal import paragraph, show_table

from . import demo as demos
from .job import BINS, CATEGORIES, Drift, Rule
from .job import drift as compare_tables
from .job import profile as profile_table
from .profiles import Profile, merge
from .report import paragraphs, render, table_rows, verdict, watch_rows
from .statistics import ADJUST, MEASURES
from .watching import Watch
from .watching import watch as watch_table

DRIFT = 1
_RULE = Rule()

Columns = Annotated[
    list[str] | None, typer.Option(help="Use these columns only; commas between, or repeated.", metavar="A,B,...")
]
Drop = Annotated[list[str] | None, typer.Option(help="Leave these columns out.", metavar="A,B,...")]
Database = Annotated[
    str | None, typer.Option(help="A DuckDB file in which names of tables and queries are looked up.", metavar="FILE")
]
Spark = Annotated[
    str | None, typer.Option(help="Read with Spark: the master, such as local[2] or spark://host:7077.", metavar="URL")
]
Seed = Annotated[int, typer.Option(help="Of what is drawn at random.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Drifts(TyperGroup):
    """`kullback drift A B` is `kullback drift tables A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["tables", *args]
        return super().parse_args(ctx, args)


drift = typer.Typer(
    cls=Drifts,
    no_args_is_help=True,
    help="Has a table drifted from a reference? Calibrated tests, effects with intervals, on DuckDB or Spark. "
    "Exit code 0: no drift; 1: drift; 2: error.",
)


@drift.command()
def tables(
    reference: Annotated[
        str | None,
        typer.Argument(
            help="A CSV or Parquet file, a folder of Parquet, a pattern, a query, a table's name (with --database or "
            "--spark), or a profile (.json)."
        ),
    ] = None,
    current: Annotated[str | None, typer.Argument(help="What is compared with it.")] = None,
    columns: Columns = None,
    drop: Drop = None,
    by: Annotated[str | None, typer.Option(help="Compare within each value of a column.", metavar="COLUMN")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Rows with the same value here belong together: a session, a patient.", metavar="COLUMN"),
    ] = None,
    joint: Annotated[
        str, typer.Option(help="Split the joint KL of these columns by the chain rule.", metavar="A,B,...")
    ] = "",
    bins: Annotated[int, typer.Option(help="Cells of a column of numbers, at quantiles of REFERENCE.")] = BINS,
    categories: Annotated[int, typer.Option(help="Values of a column of text that are counted by name.")] = CATEGORIES,
    measure: Annotated[
        str, typer.Option(help=f"The effect that decides: {', '.join(MEASURES)}; kl is KL(reference‖current).")
    ] = _RULE.measure,
    smallest: Annotated[float, typer.Option(help="The smallest effect that matters, in nats.")] = _RULE.smallest,
    alpha: Annotated[float, typer.Option(help="False alarms that are accepted, over all columns.")] = _RULE.alpha,
    adjust: Annotated[str, typer.Option(help=f"For many columns: {', '.join(ADJUST)}.")] = _RULE.adjust,
    level: Annotated[float, typer.Option(help="Nominal coverage of the intervals.")] = _RULE.level,
    seed: Seed = 0,
    database: Database = None,
    spark: Spark = None,
    out: Annotated[
        Path | None, typer.Option(help="Write report.html and drift.json into this new folder.", metavar="DIR")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Real data from installed packages instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two tables column by column. This is what `kullback drift REFERENCE CURRENT` does."""
    start = time.monotonic()
    _quiet_end()
    with ending("kullback drift"):
        rule = Rule(alpha, adjust, measure, smallest, level)
        if demo:
            if reference is not None or current is not None:
                raise BadInput("--demo brings its own data; write it without REFERENCE and CURRENT")
            shown = demos.find()
            reference, current = shown.reference, shown.current
            drop, joint, cluster = [*(drop or ()), *shown.drop], joint or ",".join(shown.joint), shown.cluster
        if reference is None or current is None:
            raise BadInput("two tables are needed: kullback drift REFERENCE CURRENT; or write --demo")
        if out is not None:
            check_free(out)
        with progress("kullback drift", of="data") as job:
            found = compare_tables(
                reference,
                current,
                columns=_names(columns),
                drop=_names(drop),
                by=by,
                cluster=cluster,
                joint_of=_names([joint]),
                bins=bins,
                categories=categories,
                rule=rule,
                seed=seed,
                database=database,
                spark=spark,
                progress=job.show,
            )
        if demo:
            found.reference, found.current = (f"{shown.title}: {side}" for side in ("reference", "current"))
            found.notes = (*found.notes, f"The data: {shown.licence}")
        folder = None if out is None else _keep(found, out)
    if as_json:
        print(dump_json(found.to_json()))
    else:
        _show(found, folder, time.monotonic() - start)
    raise typer.Exit(DRIFT if found.drifted else 0)


@drift.command("profile")
def make_profile(
    data: Annotated[list[str], typer.Argument(help="A table, or profiles (.json) to be added up.")],
    out: Annotated[Path, typer.Option(help="The profile: JSON, a few kB, no rows.", metavar="FILE")],
    like: Annotated[
        Path | None, typer.Option(help="Take the cells of this profile, so that the two add up.", metavar="FILE")
    ] = None,
    min_count: Annotated[int, typer.Option(help="Categories with fewer rows lose their name.", min=0)] = 0,
    columns: Columns = None,
    drop: Drop = None,
    bins: Annotated[int, typer.Option(help="Cells of a column of numbers.")] = BINS,
    categories: Annotated[int, typer.Option(help="Values of a column of text that are counted by name.")] = CATEGORIES,
    database: Database = None,
    spark: Spark = None,
) -> None:
    """Count a table once, and keep cells and counts; or add profiles up: days into months."""
    _quiet_end()
    with ending("kullback drift profile"):
        check_file("--out", out, (".json",))
        if all(name.lower().endswith(".json") for name in data):
            made = merge([Profile.read(Path(name)) for name in data])
            made = made.folded(min_count) if min_count > 1 else made
        elif len(data) > 1:
            raise BadInput(
                f"{len(data)} tables were given; profile each, the later ones --like the first, and add them up"
            )
        else:
            with progress("kullback drift profile", of="data"):
                made = profile_table(
                    data[0],
                    columns=_names(columns),
                    drop=_names(drop),
                    bins=bins,
                    categories=categories,
                    like=None if like is None else Profile.read(like),
                    min_count=min_count,
                    database=database,
                    spark=spark,
                )
        made.write(out)
    print(f"{out}: {made.rows:,} rows, {len(made.columns)} columns, {out.stat().st_size:,} bytes")


@drift.command("watch")
def watch_windows(
    reference: Annotated[str, typer.Argument(help="A profile (.json), or a table.")],
    data: Annotated[str, typer.Argument(help="A table with a time column.")],
    time: Annotated[str, typer.Option(help="The column of times, or of whole numbers.", metavar="COLUMN")],
    every: Annotated[
        str, typer.Option(help="The period: minute, hour, day, week, month, quarter, year; or how many numbers.")
    ] = "day",
    window: Annotated[int, typer.Option(help="Periods in a sliding window.")] = 1,
    alpha: Annotated[float, typer.Option(help="The chance of any false alarm in the whole run.")] = _RULE.alpha,
    smallest: Annotated[float, typer.Option(help="The smallest KL that matters, in nats.")] = _RULE.smallest,
    columns: Columns = None,
    drop: Drop = None,
    seed: Seed = 0,
    database: Database = None,
    spark: Spark = None,
    as_json: AsJson = False,
) -> None:
    """Compare sliding windows of a table with a reference, with one false-alarm rate for the whole run."""
    _quiet_end()
    with ending("kullback drift watch"), progress("kullback drift watch", of="data"):
        found = watch_table(
            reference,
            data,
            time=time,
            every=every,
            window=window,
            alpha=alpha,
            smallest=smallest,
            columns=_names(columns),
            drop=_names(drop),
            seed=seed,
            database=database,
            spark=spark,
        )
    if as_json:
        print(dump_json(found.to_json()))
    else:
        _show_watch(found)
    raise typer.Exit(DRIFT if found.alarms else 0)


def _show(found: Drift, folder: Path | None, seconds: float) -> None:
    header, *rows = table_rows(found)
    show_table(header, rows, of="data", width=120)
    if found.joint is not None:
        parts = ", ".join(f"{part.column} {max(part.value, 0.0):.3g}" for part in found.joint.parts)
        print(
            paragraph(f"Joint KL of {', '.join(found.joint.columns)}: {found.joint.value:.3g} nats, of these {parts}.")
        )
    for text in paragraphs(found):
        print(paragraph(text))
    print(paragraph(f"{verdict(found)}."))
    if folder is not None:
        print(f"Report: {folder / 'report.html'} ({seconds:.0f} s)")


def _show_watch(found: Watch) -> None:
    if found.alarms:
        header, *rows = watch_rows(found)
        show_table(header, rows, of="data", width=120)
    many = f"{len(found.alarms)} alarm{'s' * (len(found.alarms) != 1)}" if found.alarms else "No alarm"
    print(
        paragraph(
            f"{many} in {len(found.windows)} windows of {len(found.kl)} columns; if nothing had changed, a run like "
            f"this would see one with probability {found.alpha:g}."
        )
    )
    for note in found.notes:
        print(paragraph(note))


def _keep(found: Drift, out: Path) -> Path:
    folder = new_folder(out, datetime.now(), "kullback-drift")
    write_bytes(folder / "report.html", render(found).encode())
    write_json(folder / "drift.json", found.to_json())
    return folder


def _quiet_end() -> None:
    """Where torch is loaded as well, DuckDB 2.0 ends a process with a page about leaks of its own on standard error. By
    then everything has been said.
    """

    def hush() -> None:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    atexit.register(hush)


def _names(given: Sequence[str] | None) -> list[str]:
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]
