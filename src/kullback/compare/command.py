"""The sub-command `kullback kl`: reads options, measures, prints."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kullback._errors import BadInput, KullbackError
from kullback.distill.run_folder import write_bytes
from kullback.estimate import (
    JEFFREYS_PRIOR,
    KRICHEVSKY_TROFIMOV_PRIOR,
    LAPLACE_PRIOR,
    DirichletPrior,
    MillerMadow,
    PlugIn,
)

from .files import Content, Kind, aligned, read
from .measure import DIVERGENCES, Answer, Request, Side, answer
from .text import looks_like_distribution, parse_distribution


def kl(
    p: Annotated[str, typer.Argument(help="The reference: a CSV, Parquet or npy file, or text such as 'Normal(0,1)'.")],
    q: Annotated[str, typer.Argument(help="What is taken for it: a file or text, as for P.")],
    base: Annotated[float | None, typer.Option(help="Unit: 2 gives bits; nats unless given.", metavar="NUMBER")] = None,
    both: Annotated[bool, typer.Option("--both", help="Both directions.")] = False,
    divergence: Annotated[str, typer.Option(help=f"One of {', '.join(DIVERGENCES)}.")] = "kl",
    level: Annotated[float, typer.Option(help="Nominal coverage of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the estimators that draw.")] = 0,
    hold: Annotated[
        str | None,
        typer.Option(
            "--as", help="What the files hold: samples, counts or probs; guessed unless given.", metavar="KIND"
        ),
    ] = None,
    columns: Annotated[str, typer.Option(help="Use these columns only, with commas between.", metavar="A,B,...")] = "",
    prior: Annotated[
        str | None,
        typer.Option(help="Of counts: jeffreys, kt, laplace, or the number that is added to each.", metavar="PRIOR"),
    ] = None,
    drop_unseen: Annotated[
        bool, typer.Option("--drop-unseen", help="Of counts: leave out, and report, categories that only P has seen.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of both to this .svg file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure KL(P‖Q) between two files of samples, counts or probabilities, or two distributions given as text.

    A file holds columns of numbers (samples, one a row), two columns of names and counts, or probabilities.
    """
    try:
        _check(base, level, hold, plot)
        request = Request(
            divergence.strip().lower(), math.e if base is None else base, level, seed, _counting(prior, drop_unseen)
        )
        sides = _sides(p, q, hold, columns)
        answers = [answer(*sides, request)]
        if both:
            answers.append(answer(sides[1], sides[0], request, ("Q", "P")))
        if plot is not None:
            from .picture import draw_picture

            write_bytes(plot, draw_picture(*sides, answers[0], (p, q)).encode())
    except (KullbackError, OSError) as error:
        print(f"kullback kl: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps(_document(sides, (p, q), answers), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(_table(sides, (p, q), answers, plot))


def _check(base: float | None, level: float, hold: str | None, plot: Path | None) -> None:
    if base is not None and not 1.0 < base < math.inf:
        raise BadInput(f"--base is {base:g}, but a unit needs a number above 1: --base 2 for bits.")
    if not 0.0 < level < 1.0:
        raise BadInput(f"--level is {level:g}; write a number between 0 and 1, such as 0.95.")
    if hold is not None and hold not in get_args(Kind):
        raise BadInput(f"--as is {hold!r}; write samples, counts or probs.")
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise BadInput(f"--plot {plot}: the picture is SVG; write a name that ends in .svg.")
        if not plot.absolute().parent.is_dir():
            raise BadInput(f"--plot {plot}: there is no folder {plot.parent}.")


def _counting(prior: str | None, drop_unseen: bool) -> PlugIn | None:
    if prior is None:
        return PlugIn(correction=MillerMadow(), unseen="drop") if drop_unseen else None
    if drop_unseen:
        raise BadInput("--prior leaves no category unseen; write it without --drop-unseen.")
    named = {"jeffreys": JEFFREYS_PRIOR, "kt": KRICHEVSKY_TROFIMOV_PRIOR, "laplace": LAPLACE_PRIOR}
    if prior.lower() in named:
        return PlugIn(prior=named[prior.lower()])
    try:
        return PlugIn(prior=DirichletPrior(float(prior)))
    except ValueError:
        raise BadInput(f"--prior is {prior!r}; write jeffreys, kt, laplace, or a number above 0.") from None


def _sides(p: str, q: str, hold: Any, columns: str) -> tuple[Side, Side]:
    names = [name.strip() for name in columns.split(",") if name.strip()]

    def one(text: str) -> Side:
        if looks_like_distribution(text) and not Path(text).exists():
            return parse_distribution(text)
        return read(text, hold, names)

    first, second = one(p), one(q)
    if isinstance(first, Content) and isinstance(second, Content) and "samples" not in (first.kind, second.kind):
        return aligned(first, second)
    return first, second


def _table(sides: tuple[Side, Side], given: tuple[str, str], answers: list[Answer], plot: Path | None) -> str:
    lines: list[tuple[str, str]] = []
    for one in answers:
        lines.append((one.direction, f"{one.value:.6g} {one.unit}".rstrip()))
        if one.interval is not None:
            low, high = one.interval
            stderr = "" if one.stderr is None or math.isnan(one.stderr) else f" (standard error {one.stderr:.3g})"
            lines.append(("interval", f"{low:.6g} to {high:.6g} at {100 * one.level:g} %{stderr}"))
        lines.append(("method", one.method + ("" if one.exact else f", n={one.n}" + _and_m(one))))
        if one.bias and one.bias != "none":
            lines.append(("bias", one.bias))
        if one.verdict:
            lines.append(("caution", one.verdict))
    lines += [(name, _describe(side, text)) for name, side, text in zip("PQ", sides, given, strict=True)]
    if plot is not None:
        lines.append(("picture", str(plot)))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines)


def _and_m(one: Answer) -> str:
    return "" if one.m is None else f", m={one.m}"


def _describe(side: Side, text: str) -> str:
    return str(side) if isinstance(side, Content) else text.strip()


def _document(sides: tuple[Side, Side], given: tuple[str, str], answers: list[Answer]) -> dict[str, Any]:
    """JSON has no infinity: an infinite or unknown number is null, and "infinite" says which values are +inf."""
    results = []
    for one in answers:
        entry = {key: _plain(value) for key, value in asdict(one).items()}
        entry["infinite"] = math.isinf(one.value)
        results.append(entry)
    described = {
        name: {"given": text, "held": side.kind if isinstance(side, Content) else "distribution"}
        for name, side, text in zip("pq", sides, given, strict=True)
    }
    return {**described, "results": results}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
