"""The sub-command `kullback lm cache`: reads options, shows progress, prints."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from kullback._errors import BadInput
from kullback.kit.ending import ending
from kullback.kit.files import dump_json
from kullback.kit.runs import carry_out, resumed_alone
from kullback.kit.terminal import pairs
from kullback.language.caches.format import Policy

from . import job
from .job import SMALL, Results, Settings

_NAME = "kullback lm cache"


def cache(
    context: typer.Context,
    teacher: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a transformers model with its tokenizer, or 'small' for a teacher that is trained here, in "
            "a minute, in the folder OUT-teacher."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="A .txt, .jsonl or .parquet file, or a folder of them. Default: the documentation strings of Python's "
            "standard library, without those that 'kullback lm distill' holds out.",
            metavar="FILE|DIR",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="What is kept of each distribution: top-k, its likeliest classes, or drawn ones.")
    ] = Settings.policy,
    k: Annotated[
        int | None, typer.Option(help="How many classes, or draws. Default: 64 of top-k, 50 of drawn.")
    ] = Settings.k,
    temperature: Annotated[
        float, typer.Option(help="T at which the teacher is kept; a loss is told by teacher_temperature=1.")
    ] = Settings.temperature,
    window: Annotated[
        int | None,
        typer.Option("--context", help="Tokens in a window. Default: as many as the teacher takes, at most 512."),
    ] = Settings.context,
    overlap: Annotated[
        int, typer.Option(help="How many tokens a window repeats of the one before, to be seen and not described.")
    ] = Settings.overlap,
    out: Annotated[
        Path | None, typer.Option(help="The cache. Default: kullback-lm-cache-<date>-<time>.", metavar="FOLDER")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = Settings.device,
    dtype: Annotated[
        str | None, typer.Option(help="In which the teacher computes. Default: that of its weights.")
    ] = Settings.dtype,
    batch_size: Annotated[int, typer.Option(help="Windows that the teacher reads at once.")] = Settings.batch_size,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = Settings.seed,
    shard_tokens: Annotated[
        int, typer.Option(help="Tokens in a file: what a run that is killed may have to do again.")
    ] = Settings.shard_tokens,
    teacher_steps: Annotated[
        int, typer.Option(help="For how many steps the small teacher is trained.")
    ] = Settings.teacher_steps,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with a cache that was stopped; the command that began it, given again, does so too.",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")] = False,
) -> None:
    """Keep what a teacher says of a text, to train students from: a folder of Parquet files.

    Each token's likeliest classes, or classes drawn from the teacher, with their log-probabilities. Killed at any
    moment it goes on where it was; a cache of another teacher, tokenizer, text or of other settings is left alone.
    """
    with ending(_NAME):
        if resume is not None:
            resumed_alone(context)
            if (found := job.finished(resume)) is not None:
                _print(found, as_json)
                return
            results = carry_out(_NAME, lambda show, begun: job.resume(resume, show, begun), as_json=as_json, of="lm")
        else:
            if teacher is None:
                raise BadInput(f"TEACHER is missing; name the folder of a transformers model, or write {_NAME} {SMALL}")
            settings = Settings(
                teacher=teacher,
                text=text,
                policy=cast(Policy, policy),
                k=k,
                temperature=temperature,
                context=window,
                overlap=overlap,
                out=out,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                seed=seed,
                shard_tokens=shard_tokens,
                teacher_steps=teacher_steps,
            )
            results = carry_out(_NAME, lambda show, begun: job.run(settings, show, begun), as_json=as_json, of="lm")
        _print(results, as_json)


def _print(results: Results, as_json: bool) -> None:
    if as_json:
        print(dump_json(results.to_json()))
        return
    assert results.cache is not None
    print(pairs(_lines(results)))


def _lines(results: Results) -> list[tuple[str, str]]:
    cache: Any = results.cache
    of = cache.settings
    kept = f"{of.k} likeliest" if of.policy == "top-k" else f"{of.k} draws, seed {of.seed},"
    share = cache.bytes_per_token / cache.dense_bytes_per_token
    lines = [
        ("teacher", f"{of.teacher.name} ({of.teacher.hash[:12]}), {of.dtype}"),
        ("kept", f"{kept} of {of.num_classes:,} classes, temperature {of.temperature:g}"),
        ("text", f"{cache.tokens:,} tokens in {cache.windows:,} windows of up to {of.context}"),
        (
            "storage",
            f"{cache.bytes_per_token:,.1f} bytes a token; dense float16 would take {cache.dense_bytes_per_token:,} "
            f"({share:.2%})",
        ),
    ]
    if cache.left_out is not None:
        lines.append(("left out", f"{cache.left_out:.4f} of the teacher's mass, on average"))
    if results.seconds:
        lines.append(("time", f"{results.seconds:,.0f} s"))
    return [*lines, ("cache", f"{results.folder} ({cache.size / 1e6:,.1f} MB)")]
