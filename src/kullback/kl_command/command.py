"""The sub-command `kullback kl`: reads options, measures, prints."""

import csv
import json
import math
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from kullback._errors import BadInput
from kullback.estimate import (
    JEFFREYS_PRIOR,
    KRICHEVSKY_TROFIMOV_PRIOR,
    LAPLACE_PRIOR,
    DirichletPrior,
    MillerMadow,
    PlugIn,
)
from kullback.kit.ending import ending
from kullback.kit.files import check_file, write_bytes
from kullback.kit.tables import is_number, shortened

from .choices import choose, written
from .content import LARGEST_COUNT, Content, Kind, Wanted, read
from .matching import matched
from .measure import Request, Side, answer, contributions
from .report import document, text
from .text import looks_like_distribution, parse_distribution


def kl(
    p: Annotated[
        str,
        typer.Argument(
            help="The reference: a CSV, Parquet or npy file, - for standard input, or text such as 'Normal(0,1)'.",
            metavar="P",
        ),
    ],
    q: Annotated[str, typer.Argument(help="What is taken for it: a file or text, as for P.", metavar="Q")],
    base: Annotated[float | None, typer.Option(help="Unit: 2 gives bits; nats unless given.", metavar="NUMBER")] = None,
    both: Annotated[bool, typer.Option("--both", help="Both directions.")] = False,
    divergence: Annotated[str, typer.Option(help=f"One of {', '.join(written())}.", metavar="NAME")] = "kl",
    level: Annotated[float, typer.Option(help="Nominal coverage of the interval.", metavar="NUMBER")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the estimators that draw.", metavar="NUMBER")] = 0,
    hold: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="What the files hold: samples, counts, probs or logits, or two of these with a comma between, for P "
            "and for Q. Told from what they look like unless given.",
            metavar="KIND",
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Use these columns only; numbers from 1 where they have no names.", metavar="A,B,...")
    ] = "",
    q_columns: Annotated[
        str, typer.Option(help="Columns of Q, where they are others than those of P.", metavar="A,B,...")
    ] = "",
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header", help="Whether the first line of CSV names the columns; told unless given."
        ),
    ] = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Match columns and categories by position, whatever their names.")
    ] = False,
    rescale: Annotated[bool, typer.Option("--rescale", help="Divide probabilities by their sum.")] = False,
    prior: Annotated[
        str | None,
        typer.Option(help="Of counts: jeffreys, kt, laplace, or the number that is added to each.", metavar="PRIOR"),
    ] = None,
    drop_unseen: Annotated[
        bool, typer.Option("--drop-unseen", help="Of counts: leave out, and report, categories that only P has seen.")
    ] = False,
    by_category: Annotated[
        bool, typer.Option("--contributions", help="Print what each category adds to KL, p log(p/q).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of both to this .svg file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure KL(P‖Q) between two files of samples, counts or probabilities, or two distributions given as text.

    A file holds columns of numbers (samples, one a row), two columns of names and counts, or probabilities or logits:
    one distribution, or one a row. The answer says what each was taken for, and why.
    """
    with ending("kullback kl"):
        _check(base, level, plot)
        choice = choose(divergence)
        if base is not None and not choice.row.logarithmic:
            raise BadInput(f"--base: {choice.name} has no unit; leave it out")
        request = Request(choice, math.e if base is None else base, level, seed, _counting(prior, drop_unseen))
        one, other = _wanted(hold, columns, q_columns, header, rescale)
        sides = _sides(p, q, (one, other), by_position=by_position or bool(q_columns))
        _refuse_useless(sides, prior, drop_unseen, by_category, choice.row.name)
        answers = [answer(*sides, request)]
        if both:
            answers.append(answer(sides[1], sides[0], request, ("Q", "P")))
        if plot is not None:
            from .picture import draw_picture

            write_bytes(plot, draw_picture(*sides, answers[0], (p, q)))
        terms = _contributions(sides, request.base) if by_category else None
        if as_json:
            print(json.dumps(document(sides, (p, q), answers, terms), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            print(text(sides, (p, q), answers, terms, plot))


def _check(base: float | None, level: float, plot: Path | None) -> None:
    if base is not None and not 1.0 < base < math.inf:
        raise BadInput(f"--base is {base:g}, but a unit needs a number above 1: --base 2 for bits.")
    if not 0.0 < level < 1.0:
        raise BadInput(f"--level is {level:g}; write a number between 0 and 1, such as 0.95.")
    if plot is not None:
        check_file("--plot", plot, (".svg",))


def _counting(prior: str | None, drop_unseen: bool) -> PlugIn | None:
    if prior is None:
        return PlugIn(correction=MillerMadow(), unseen="drop") if drop_unseen else None
    if drop_unseen:
        raise BadInput("--prior leaves no category unseen; write it without --drop-unseen.")
    named = {"jeffreys": JEFFREYS_PRIOR, "kt": KRICHEVSKY_TROFIMOV_PRIOR, "laplace": LAPLACE_PRIOR}
    if prior.lower() in named:
        return PlugIn(prior=named[prior.lower()])
    if is_number(prior) and 0.0 < float(prior) < LARGEST_COUNT:
        return PlugIn(prior=DirichletPrior(float(prior)))
    raise BadInput(
        f"--prior is {shortened(prior, 40)!r}; write jeffreys, kt, laplace, or a number above 0 and below 2^53."
    )


def _wanted(
    hold: str | None, columns: str, q_columns: str, header: bool | None, rescale: bool
) -> tuple[Wanted, Wanted]:
    kinds = [None] if hold is None else [kind.strip() for kind in hold.split(",")]
    if len(kinds) > 2 or any(kind is not None and kind not in get_args(Kind) for kind in kinds):
        raise BadInput(
            f"--as is {shortened(str(hold), 40)!r}; write samples, counts, probs or logits, or two with a comma between"
        )
    first = _names("--columns", columns)
    second = _names("--q-columns", q_columns) or first
    return (
        Wanted(cast(Any, kinds[0]), first, header, rescale),
        Wanted(cast(Any, kinds[-1]), second, header, rescale),
    )


def _names(option: str, text: str) -> tuple[str, ...]:
    """Names with commas between; one that holds a comma stands in double quotes."""
    try:
        names = tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True, strict=True), []))
    except csv.Error:
        raise BadInput(f"{option} {shortened(text, 40)!r}: its quotes are not closed") from None
    if not text.strip():
        return ()
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise BadInput(f"{option} names {shortened(twice, 40)!r} twice; name each column once")
    if "" in names:
        raise BadInput(f"{option} {shortened(text, 40)!r} holds an empty name; write names with one comma between")
    return names


def _sides(p: str, q: str, wanted: tuple[Wanted, Wanted], *, by_position: bool) -> tuple[Side, Side]:
    if p == q == "-":
        raise BadInput("P and Q cannot both be standard input; write the path of one")
    if looks_like_distribution(p) and looks_like_distribution(q):
        for option, given in (
            ("--as", wanted[0].kind),
            ("--columns", wanted[0].columns),
            ("--rescale", wanted[0].rescale),
        ):
            if given:
                raise BadInput(f"{option} is for files, and P and Q are distributions; leave it out")

    def one(text: str, wanted: Wanted) -> Side:
        return parse_distribution(text) if looks_like_distribution(text) else read(text, wanted)

    first, second = one(p, wanted[0]), one(q, wanted[1])
    if (
        isinstance(first, Content)
        and isinstance(second, Content)
        and (first.kind == "samples") == (second.kind == "samples")
    ):
        return matched(first, second, by_position=by_position)
    return first, second


def _refuse_useless(
    sides: tuple[Side, Side], prior: str | None, drop_unseen: bool, by_category: bool, divergence: str
) -> None:
    """Options that would change nothing are refused: whoever wrote them expects that they do."""
    kinds = [side.kind if isinstance(side, Content) else "distribution" for side in sides]
    if "counts" not in kinds:
        for option, given in (("--prior", prior is not None), ("--drop-unseen", drop_unseen)):
            if given:
                raise BadInput(
                    f"{option} is for counts, and P is taken for {kinds[0]}, Q for {kinds[1]}; leave it out, or write "
                    "--as counts"
                )
    if by_category and ("samples" in kinds or "distribution" in kinds or divergence != "kl"):
        raise BadInput("--contributions are those of categories to KL; give counts, probabilities or logits")


def _contributions(sides: tuple[Side, Side], base: float) -> list[tuple[str, float]]:
    p, q = sides
    assert isinstance(p, Content)
    assert isinstance(q, Content)
    return list(zip(p.labels, contributions(p, q, base).tolist(), strict=True))
