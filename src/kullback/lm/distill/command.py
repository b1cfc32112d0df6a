"""The sub-command `kullback lm distill`: reads options, shows progress, prints."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from kullback.kit.ending import ending
from kullback.kit.files import dump_json
from kullback.kit.runs import carry_out, resumed_alone
from kullback.kit.terminal import paragraph, show_table
from kullback.kit.unfinished import finished
from kullback.losses.named import DIVERGENCE_CHOICES

from . import job
from .job import Begun, Progress
from .results import Results
from .settings import TAILS, Settings

_NAME = "kullback lm distill"
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


def distill(
    context_: typer.Context,
    teacher: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a causal language model of transformers, with its tokenizer. Default: a small one, trained "
            "here on Python's documentation strings in about a minute."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A .txt file, a .jsonl or .parquet file with a column text, or a folder of them. Default: Python's "
            "documentation strings, one document a module.",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Learn from this cache of `kullback lm cache`, not from TEACHER itself.", metavar="FOLDER"),
    ] = None,
    tail: Annotated[
        str, typer.Option(help=f"What the classes that a top-k cache left out have: {', '.join(TAILS)}.")
    ] = _DEFAULTS["tail"],
    student: Annotated[
        Path | None, typer.Option(help="Begin with this model. Default: a new, small Llama.", metavar="FOLDER")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of a new student.")] = _DEFAULTS["hidden"],
    layers: Annotated[int, typer.Option(help="Layers of a new student.")] = _DEFAULTS["layers"],
    heads: Annotated[int, typer.Option(help="Attention heads of a new student.")] = _DEFAULTS["heads"],
    divergence: Annotated[
        str, typer.Option(help=f"What the student minimises, teacher first: {', '.join(DIVERGENCE_CHOICES)}.")
    ] = _DEFAULTS["divergence"],
    temperature: Annotated[float, typer.Option(help="T, of the soft term.")] = _DEFAULTS["temperature"],
    soft_weight: Annotated[
        float, typer.Option(help="Weight of the teacher; the rest is that of the labels.")
    ] = _DEFAULTS["soft_weight"],
    fused: Annotated[
        bool | None,
        typer.Option(help="From hidden states to the loss, without logits of all positions. Default: where possible."),
    ] = _DEFAULTS["fused"],
    steps: Annotated[int | None, typer.Option(help="Steps of each student. Default: 300.")] = _DEFAULTS["steps"],
    epochs: Annotated[
        float | None, typer.Option(help="In place of --steps: how often each student sees the text.")
    ] = _DEFAULTS["epochs"],
    batch_size: Annotated[int, typer.Option(help="Windows in a step, over all ranks.")] = _DEFAULTS["batch_size"],
    learning_rate: Annotated[float, typer.Option(help="The peak; it falls to 0.")] = _DEFAULTS["learning_rate"],
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window. Default: 128, or what the teacher takes.")
    ] = _DEFAULTS["context"],
    held_out: Annotated[float, typer.Option(help="Share of documents held out.")] = _DEFAULTS["held_out"],
    teacher_steps: Annotated[int, typer.Option(help="Steps of a teacher that is trained here.")] = _DEFAULTS[
        "teacher_steps"
    ],
    seeds: Annotated[int, typer.Option(help="How many students of each kind.")] = _DEFAULTS["seeds"],
    seed: Annotated[int, typer.Option(help="The first seed; also of the teacher.")] = _DEFAULTS["seed"],
    ranks: Annotated[
        int, typer.Option(help="Train each student on so many processes, which torchrun starts.")
    ] = _DEFAULTS["ranks"],
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: kullback-lm-distill-<date>-<time>.", metavar="FOLDER")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _DEFAULTS["device"],
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with a run that was stopped, with the settings it was begun with, to the same results.",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Distil a language model into a smaller one, and see what the teacher brings.

    Trains students with the same budget from the teacher and from labels alone, and measures both on held-out
    documents: perplexity, and KL(teacher‖student) a token. Nothing is downloaded.
    """
    with ending(_NAME):
        if resume is not None:
            resumed_alone(context_)
            if (document := finished(resume)) is not None:
                print(dump_json(document) if as_json else f"Complete already. Report: {resume / 'report.html'}")
                return
            _do(lambda show, begun: job.resume(resume, show, begun), as_json)
            return
        settings = Settings(
            teacher=teacher,
            text=text,
            cache=cache,
            tail=tail,
            student=student,
            hidden=hidden,
            layers=layers,
            heads=heads,
            divergence=divergence,
            temperature=temperature,
            soft_weight=soft_weight,
            fused=fused,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            context=context,
            held_out=held_out,
            teacher_steps=teacher_steps,
            seeds=seeds,
            seed=seed,
            ranks=ranks,
            out=out,
            device=device,
        )
        _do(lambda show, begun: job.run(settings, show, begun), as_json)


def _do(work: Callable[[Progress, Begun], Results], as_json: bool) -> None:
    results: Results = carry_out(_NAME, work, as_json=as_json, of="lm")
    if as_json:
        print(dump_json(results.to_json()))
    else:
        _show(results.to_json())


def _show(found: dict[str, Any]) -> None:
    data, teacher, students = found["data"], found["teacher"], found["students"]
    rows = [["the teacher", _number(teacher["perplexity"], ".1f"), "0", "-", f"{teacher['parameters']:,}"]]
    for each in students:
        share = {name: 100 * x for name, x in each["same_top"].items() if name in ("value", "stderr") and x is not None}
        cells = [_number(each["perplexity"], ".1f"), _number(each["kl"], ".4f"), _number(share, ".1f")]
        rows.append([each["name"], *cells, f"{each['parameters']:,}"])
    title = f"{data['held_out_tokens']:,} tokens of {data['held_out_documents']} held-out documents"
    show_table(["", "perplexity", "KL(t‖s)", "same top, %", "parameters"], rows, of="lm", title=title)
    seeds, level = found["seeds"], 100 * found["level"]
    many = f"seed {seeds[0]}" if len(seeds) == 1 else f"the mean of seeds {', '.join(map(str, seeds))}"
    print(
        paragraph(
            f"{data['source']}: {many}; ± standard error, clustered by document. KL(teacher‖student) in nats a token, "
            "at temperature 1."
        ),
        *(paragraph(f"Note: {note}") for note in found["notes"]),
        paragraph(verdict(found["difference"], level)),
        f"Report: {Path(found['folder']) / 'report.html'} ({found['seconds']:.0f} s)",
        sep="\n",
    )


def verdict(difference: dict[str, Any], level: float) -> str:
    """What the teacher brought, in a sentence.

    >>> kl = {"value": -0.2, "stderr": 0.01, "low": -0.22, "high": -0.18}
    >>> verdict({"kl": kl, "perplexity_ratio": {"value": 0.8, "stderr": 0.01, "low": 0.78, "high": 0.82}}, 95.0)
    'From the teacher less from labels alone: KL -0.2000 (95 % -0.2200 to -0.1800); perplexity times 0.800 (95 ...'
    """

    def within(found: dict[str, Any], form: str) -> str:
        if found["low"] is None:
            return f"{found['value']:{form}}"
        return f"{found['value']:{form}} ({level:g} % {found['low']:{form}} to {found['high']:{form}})"

    kl, ratio = difference["kl"], difference["perplexity_ratio"]
    return f"From the teacher less from labels alone: KL {within(kl, '.4f')}; perplexity times {within(ratio, '.3f')}."


def _number(found: dict[str, Any], form: str) -> str:
    if found["value"] is None:
        return "-"
    error = found.get("stderr")
    return f"{found['value']:{form}}" + ("" if error is None else f" ± {error:{form}}")
