"""The sub-command `kullback compare`: reads options, shows progress, prints."""

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

from . import demo as demos
from . import job, terminal
from .results import Comparison
from .settings import Settings

_NAME = "kullback compare"
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


def compare(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="REFERENCE CANDIDATE [CANDIDATE ...]: folders of transformers models. REFERENCE may also be a stored "
            "run (--save-reference) or llama.cpp's base file. NAME=FOLDER names a candidate.",
            metavar="REFERENCE CANDIDATE...",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="A .txt file (one document), a .jsonl or .parquet file (a document in each row, column text), or a "
            "folder of them. A stored reference has its text.",
            metavar="FILE|DIR",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--context", help="Tokens that a model reads at once. Default: 512, or what all models can take."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score so many tokens at most.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pieces of text that go through a model together.")] = _DEFAULTS[
        "batch_size"
    ],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = _DEFAULTS["device"],
    dtype: Annotated[
        str | None, typer.Option(help="Load models in float32, bfloat16, float16 or float64. Default: as stored.")
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Rows of scores that are tokens; the rest is padding. Default: the tokenizer's tokens."),
    ] = None,
    noise: Annotated[
        int, typer.Option(help="Tokens on which the reference is compared with itself, run otherwise; 0: none.")
    ] = _DEFAULTS["noise"],
    noise_dtype: Annotated[
        str | None, typer.Option(help="One more noise floor: the reference in this dtype.", metavar="DTYPE")
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            help="Keep the reference's run, to compare with it later without the model: in a new folder, or, if it "
            "ends in .kld, as llama.cpp's base file. Candidates may then be left out.",
            metavar="DIR|FILE.kld",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="With --save-reference: keep the K likeliest tokens, whose divergences are lower bounds, in place of "
            "hidden states, which are exact.",
            metavar="K",
        ),
    ] = None,
    llama_log: Annotated[
        Path | None,
        typer.Option(help="What llama-perplexity --kl-divergence printed, to be set beside this.", metavar="FILE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: kullback-compare-<date>-<time>.", metavar="DIR")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with a comparison that was stopped, with the settings it was begun with, to the same results.",
            metavar="DIR",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="A small model trained here against its own roundings; no download.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Print every line of llama.cpp's blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the tables.")] = False,
) -> None:
    """Compare language models token by token: how much did quantising, pruning, converting or serving change a model?

    KL divergence of every token with standard errors clustered by document, paired tests between candidates, and the
    noise floor of the reference itself.
    """
    with ending(_NAME):
        if resume is not None:
            resumed_alone(context, "full")
            if (found := finished(resume)) is not None:
                print(dump_json(found) if as_json else f"Complete already. Report: {resume / 'report.html'}")
                return
            _do(lambda show, begun: job.resume(resume, show, begun), as_json, full)
            return
        settings = Settings(
            device=device,
            dtype=dtype,
            context=window,
            batch_size=batch_size,
            limit=limit,
            num_classes=num_classes,
            noise=noise,
            noise_dtype=noise_dtype,
            save_reference=save_reference,
            top_k=top_k,
            llama_log=llama_log,
        )
        if demo:
            if models or text is not None:
                raise BadInput(
                    "--demo brings its own models and text; write it without REFERENCE, CANDIDATE and --text"
                )
            _do(lambda show, begun: demos.run(settings, out, show, begun), as_json, full)
            return
        if not models:
            raise BadInput("two models are needed: kullback compare REFERENCE CANDIDATE --text FILE; or write --demo")
        reference, *rest = models
        candidates = [_named(each) for each in rest]
        _do(
            lambda show, begun: job.run(reference, candidates, text, settings, out, show, begun),
            as_json,
            full,
        )


def _named(given: str) -> tuple[str | None, str]:
    """NAME=FOLDER, unless there is a folder of that whole name."""
    name, sign, path = given.partition("=")
    return (name, path) if sign and name and not Path(given).exists() else (None, given)


def _do(work: Any, as_json: bool, full: bool) -> None:
    found: Comparison = carry_out(_NAME, work, as_json=as_json, of="lm")
    if as_json:
        print(dump_json(found.to_json()))
        return
    for header, rows in terminal.tables(found.to_json(), full=full):
        show_table(header, rows, of="lm", width=140)
        print()
    for line in terminal.sentences(found):
        print(paragraph(line))
    if found.candidates:
        print(f"Report: {found.folder / 'report.html'} ({found.seconds:.0f} s)")
