"""`compare`: models against a reference on the same text, token by token, kept in a run folder."""

import io
import json
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from kullback._errors import BadInput
from kullback.forms.finite import FiniteForm, Logits
from kullback.kit.extras import extra
from kullback.kit.files import check_file, check_free, new_folder, write_bytes, write_json
from kullback.kit.runs import Begun, Show
from kullback.kit.unfinished import Unfinished, document
from kullback.kit.unfinished import begun as begun_as
from kullback.language.fingerprints import model_fingerprint, tokenizer_hash

from . import base_file, llama_log, summary, table
from .base_file import BaseFileWriter
from .measuring import NotFinite, chunks, measure
from .noise import floors
from .plan import Given, Plan, make_plan
from .report import render
from .results import Comparison, versions
from .settings import Settings
from .sides import ModelSide
from .store import DOCUMENTS, About, Writer
from .text import Chunks, Source, batches

NAME = "kullback-compare"


def compare(
    reference: Any,
    candidates: Any,
    *,
    text: Source | None = None,
    tokenizer: Any = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    progress: Show | None = None,
    begun: Begun | None = None,
    **options: Any,
) -> Comparison:
    """How far models are from a reference, token by token: KL(reference‖candidate) and what goes with it.

    Args:
        reference: the folder of a transformers model, a model in memory, a stored run (`save_reference=`), llama.cpp's
            base file (.kld), or a callable from token ids (1, length) to logits (1, length, V).
        candidates: one of these but for stored runs, several in a list, or in a dict by name.
        text: a file (.txt; .jsonl or .parquet with a column `text`), a folder of them, or a list of strings, each a
            document. A stored reference has its text.
        tokenizer: where no model has its own.
        out: the run folder; None: a temporary one that goes with the result.
        settings: or its fields by name: `device`, `dtype`, `context`, `batch_size`, `limit`, ...
        progress: called with (tokens done, tokens in all, what is being done).
        begun: called once, when the run folder exists.

    Returns: `Comparison`.
    Raises:
        BadInput, MissingExtra: before anything is written, and for scores that are not finite.
        KeyboardInterrupt, OSError: the run folder then holds what was measured, says that it is incomplete, and
            `resume` goes on from there.

    Both sides run in eval mode and without gradients; models in memory stay where they are.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from kullback.language.small import train_tokenizer
    >>> texts = ["Two models read the same text.", "Each of the texts is a document, and has tokens."]
    >>> tokenizer = train_tokenizer(texts, 300)
    >>> size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    >>> found = compare(model, {"itself": model}, text=texts, tokenizer=tokenizer)
    >>> found["itself"]["statistics"]["KL divergence statistics"][0]["value"]
    0.0
    """
    settings = Settings(**options) if settings is None else settings
    return _begin(Given(reference, _several(candidates), text, tokenizer), settings, out, progress, begun)


def run(
    reference: str,
    candidates: Sequence[tuple[str | None, str]],
    text: str | None,
    settings: Settings,
    out: Path | None,
    progress: Show,
    begun: Begun,
    *,
    prepared: bool = False,
) -> Comparison:
    """What the command does: `compare`, of candidates with or without names, in a folder that stays.

    Args: prepared: the folder is there, and holds the models.
    """
    given = Given(reference, tuple(candidates), text)
    return _begin(given, settings, out, progress, begun, stays=True, prepared=prepared)


def _begin(
    given: Given,
    settings: Settings,
    out: str | Path | None,
    progress: Show | None,
    begun: Begun | None,
    *,
    stays: bool = False,
    prepared: bool = False,
) -> Comparison:
    started, clock = datetime.now().astimezone(), time.perf_counter()
    settings.check()
    out = None if out is None else Path(out)
    if not prepared:
        check_free(out)
    if settings.saves_base_file:
        _check_base(settings)
    elif settings.save_reference is not None:
        check_free(settings.save_reference, "--save-reference")
    _need_packages()
    printed = None if settings.llama_log is None else summary.of_log(llama_log.read(settings.llama_log))
    plan = make_plan(given, settings)
    temporary = not stays and out is None
    if prepared:
        assert out is not None
        folder = out
    else:
        folder = Path(mkdtemp(prefix=NAME)) if temporary else new_folder(out, started, NAME)
    found = Comparison(folder, settings, started, plan, llama_cpp=printed)
    if temporary:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    unfinished = Unfinished(folder)
    unfinished.save("run", _state(given, settings, plan, started))
    return _go(_Job(found, unfinished, progress, clock), begun)


def _check_base(settings: Settings) -> None:
    path = settings.save_reference
    assert path is not None
    check_file("--save-reference", path, (".kld",))
    if path.exists():
        raise BadInput(f"--save-reference {path}: exists; nothing was overwritten, name another file")
    if base_file.recorded(path):
        raise BadInput(
            f"--save-reference {path}: another run of it is unfinished; go on with that one, or name another"
        )


def resume(folder: str | Path, progress: Show | None = None, begun: Begun | None = None) -> Comparison:
    """Go on with a comparison that was stopped, to the same results as if it had not been (but for the times).

    Raises: BadInput: nothing to go on with, other models, text or versions than at the start.  And as `compare`.
    """
    clock, folder = time.perf_counter(), Path(folder)
    _need_packages()
    unfinished = Unfinished(folder)
    state = begun_as(folder, versions(), "comparison")
    if state["given"] is None:
        raise BadInput(f"--resume {folder}: it was begun from Python, with models in memory; begin anew")
    settings, found = Settings.from_json(json.loads(state["settings"])), json.loads(state["given"])
    candidates = tuple((name, path) for name, path in found["candidates"])
    given = Given(found["reference"], candidates, found["text"], home=Path(found["home"]))
    plan = make_plan(given, settings)
    if plan.survey.fingerprint != state["text"] or _signatures(given) != state["models"]:
        what = "a model" if plan.survey.fingerprint == state["text"] else "the text"
        raise BadInput(f"--resume {folder}: {what} has changed since it was begun; begin anew with another --out")
    printed = None if settings.llama_log is None else summary.of_log(llama_log.read(given.at(settings.llama_log)))
    begun_at = datetime.fromisoformat(state["started"])
    comparison = Comparison(folder, settings, begun_at, plan, llama_cpp=printed)
    before = float(document(folder).get("seconds", 0.0))
    return _go(_Job(comparison, unfinished, progress, clock - before), begun)


@dataclass
class _Job:
    """A comparison at work."""

    found: Comparison
    unfinished: Unfinished
    progress: Show | None
    clock: float  # when it would have begun, had it not been interrupted
    done: int = 0

    @property
    def total(self) -> int:
        plan, settings = self.found.plan, self.found.settings
        live = isinstance(plan.reference, ModelSide)
        ways = (1 + (settings.noise_dtype is not None)) * live
        return plan.survey.scored + ways * min(settings.noise, plan.survey.scored)

    def tell(self, tokens: int, what: str) -> None:
        self.done += tokens
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total, what)

    def save(self) -> None:
        """results.json, as far as it goes."""
        self.found.seconds = time.perf_counter() - self.clock
        write_json(self.found.folder / "results.json", self.found.to_json())


def _go(job: _Job, begun: Begun | None) -> Comparison:
    found = job.found
    if begun is not None:
        begun(found, _sentence(found.plan))
    try:
        _measure(job)
        _floors(job)
        job.tell(0, "statistics")
        summary.fill(found)
        found.complete = True
        _write(job)
    except (KeyboardInterrupt, OSError, NotFinite, BadInput) as stop:
        found.complete = False
        with suppress(OSError):  # what was written before stands
            summary.fill(found)
            _write(job)
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(found) from stop
        raise
    job.unfinished.clear()
    return found


def _measure(job: _Job) -> None:
    """Every token of the text, but those that are measured already."""
    found, plan = job.found, job.found.plan
    write_bytes(found.folder / DOCUMENTS, _documents(plan))
    paths = [found.tokens(name) for name in plan.names]
    store, base_path = _store(found), _base_path(found)
    pieces, rows = _measured(plan, paths, store, base_path)
    base = None if base_path is None else _base_writer(plan, base_path, rows)
    job.tell(rows, "comparing")
    spent = {"models": 0.0, "comparing": 0.0}
    about = {"reference": plan.reference.name, "text": plan.survey.fingerprint}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(table.Writer(path, about | {"candidate": name}, keep=rows))
            for name, path in zip(plan.names, paths, strict=True)
        ]
        stack.callback(lambda: setattr(found, "measured", rows))
        if base is not None:
            stack.enter_context(base)
        for batch in batches(plan.text, plan.batch_size, pieces):
            start = time.perf_counter()
            sides = [side.rows(batch, plan.num_classes) for side in (plan.reference, *plan.candidates)]
            ran = time.perf_counter()
            try:
                scores = measure(batch, sides[0], sides[1:])
            except NotFinite as error:
                raise plan.refused(batch, error) from None
            for writer, each in zip(writers, scores, strict=True):
                writer.append(each)
            if store is not None:
                store.add(batch, sides[0])
            if base is not None:
                for some in chunks(sides[0], batch.rows):
                    base.append(_scores(sides[0].part(some)))
            rows += batch.rows
            spent["models"] += ran - start
            spent["comparing"] += time.perf_counter() - ran
            job.tell(batch.rows, "comparing")
        if store is not None:
            _finish_store(job, store)
    found.speed = spent | {"tokens": float(rows)}


def _measured(plan: Plan, paths: Sequence[Path], store: Writer | None, base: Path | None) -> tuple[int, int]:
    """(pieces, rows) that every file has, up to the end of a batch."""
    known = [table.recorded(path) for path in paths] + ([] if base is None else [base_file.recorded(base)])
    pieces_known = None if store is None else store.done()
    pieces = rows = 0
    if not any(known) and not pieces_known:
        return 0, 0
    for batch in batches(plan.text, plan.batch_size):
        after = batch.start + len(batch.pieces)
        if any(rows + batch.rows > each for each in known) or (pieces_known is not None and after > pieces_known):
            break
        pieces, rows = after, rows + batch.rows
    if store is not None:
        kept = store.done(pieces)
        if kept < pieces:  # a part ended behind the last batch that all have
            pieces, rows = 0, 0
            for batch in batches(plan.text, plan.batch_size):
                if batch.start + len(batch.pieces) > kept:
                    break
                pieces, rows = batch.start + len(batch.pieces), rows + batch.rows
        store.begin(pieces)
    return pieces, rows


def _store(found: Comparison) -> Writer | None:
    settings, plan = found.settings, found.plan
    path = settings.save_reference
    if path is None or settings.saves_base_file:
        return None
    path.mkdir(parents=True, exist_ok=True)
    return Writer(path, "hidden" if settings.top_k is None else "top-k", plan.num_classes, settings.top_k)


def _base_path(found: Comparison) -> Path | None:
    """llama.cpp's base file, unless it is whole already."""
    path = found.settings.save_reference
    return path if path is not None and found.settings.saves_base_file and not path.exists() else None


def _base_writer(plan: Plan, path: Path, rows: int) -> BaseFileWriter:
    assert isinstance(plan.text, Chunks)
    return BaseFileWriter(path, list(plan.text.ids()), plan.num_classes, keep=rows or None)


def _scores(part: FiniteForm) -> Logits:
    assert isinstance(part, Logits)
    return part


def _finish_store(job: _Job, store: Writer) -> None:
    """What makes a stored reference whole."""
    found, plan = job.found, job.found.plan
    side = plan.reference
    assert isinstance(side, ModelSide)
    head = side.head
    about = About(
        kind=store.kind,
        name=side.name,
        about=side.about,
        model_hash=model_fingerprint(side.folder or side.model).hash,
        tokenizer_hash=None if plan.tokenizer is None else tokenizer_hash(plan.tokenizer),
        beginning=plan.beginning,
        num_classes=plan.num_classes,
        dtype=str(next(side.model.parameters()).dtype).removeprefix("torch."),
        k=store.k,
        scale=1.0 if head is None else head.scale,
        softcap=None if head is None else head.softcap,
        context=plan.context,
        batch_size=plan.batch_size,
        limit=found.settings.limit,
        versions=versions(),
    )
    store.finish(about, plan.survey, _documents(plan))


def _floors(job: _Job) -> None:
    found, settings = job.found, job.found.settings
    for floor in floors(found.plan, settings.noise, settings.noise_dtype, lambda n: job.tell(n, "noise floor")):
        found.noise_floor.append({"name": floor.name, "about": floor.about} | summary.of_scores(floor.scores))


def _write(job: _Job) -> None:
    """results.json and the report."""
    job.save()
    found = job.found
    if found.candidates:
        html = render(found.to_json(), found.folder, summary.texts(found.plan.tokenizer))
        write_bytes(found.folder / "report.html", html.encode())


def _documents(plan: Plan) -> bytes:
    arrow, file = extra("pyarrow", of="lm"), io.BytesIO()
    some = list(islice(plan.text.names(), plan.survey.last + 1))
    names, tokens = [name for name, _ in some], [count for _, count in some]
    made = arrow.table({"name": arrow.array(names, arrow.string()), "tokens": arrow.array(tokens, arrow.int64())})
    extra("pyarrow.parquet", of="lm").write_table(made, file)
    return file.getvalue()


def _several(candidates: Any) -> tuple[tuple[str | None, Any], ...]:
    if isinstance(candidates, Mapping):
        return tuple((str(name), each) for name, each in candidates.items())
    if isinstance(candidates, list | tuple):
        return tuple((None, each) for each in candidates)
    return ((None, candidates),)


def _state(given: Given, settings: Settings, plan: Plan, started: datetime) -> dict[str, Any]:
    """What `resume` needs."""
    paths = None
    if given.resumable:
        paths = json.dumps(
            {
                "reference": str(given.reference),
                "candidates": [(name, str(path)) for name, path in given.candidates],
                "text": None if given.text is None else str(given.text),
                "home": str(Path.cwd()),
            }
        )
    return {
        "given": paths,
        "settings": json.dumps(settings.to_json()),
        "text": plan.survey.fingerprint,
        "models": _signatures(given),
        "started": started.isoformat(),
        "versions": versions(),
    }


def _signatures(given: Given) -> list[str]:
    """What is seen of the models' files without reading them: names, sizes, times of the last change."""
    if not given.resumable:
        return []
    found = []
    for path in (given.reference, *(candidate for _, candidate in given.candidates)):
        path = Path(given.at(path))
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        seen = [(str(p.name), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        found.append(sha256(json.dumps(seen).encode()).hexdigest())
    return found


def _sentence(plan: Plan) -> str:
    survey = plan.survey
    names = ", ".join(plan.names)
    against = f"{names} against {plan.reference.name}" if names else f"storing a run of {plan.reference.name}"
    return f"{against} on {survey.scored:,} tokens of {survey.documents:,} documents"


def _need_packages() -> None:
    for module in ("transformers", "pyarrow", "safetensors.torch", "jinja2", "matplotlib"):
        extra(module, of="lm")
