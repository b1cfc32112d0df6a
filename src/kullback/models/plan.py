"""What is compared with what on which text, opened and checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.language.fingerprints import tokenizer_hash
from kullback.language.windows import begins

from . import guards
from .base_side import BaseReference, is_base_file, same_ids
from .measuring import NotFinite, measure
from .settings import CONTEXT, Settings
from .sides import ModelSide, Side, open_side
from .store import Stored, is_stored
from .text import Batch, Chunks, Cut, Piece, Reading, Source, Survey, batches


@dataclass(frozen=True)
class Given:
    """What `compare` is given; `home` is where relative paths start."""

    reference: Any
    candidates: tuple[tuple[str | None, Any], ...]
    text: Source | None
    tokenizer: Any = None
    home: Path | None = None

    @property
    def resumable(self) -> bool:
        """Whether all of it can be opened again."""
        sides = (self.reference, *(candidate for _, candidate in self.candidates))
        return all(isinstance(x, str | Path) for x in sides) and (
            self.text is None or isinstance(self.text, str | Path)
        )

    def at(self, path: Any) -> Any:
        """A path as it is found from here."""
        return self.home / path if self.home is not None and isinstance(path, str | Path) else path


@dataclass
class Plan:
    """Opened models, the text as they read it, and what has been checked."""

    reference: Side
    candidates: list[Side]
    text: Reading
    source: str
    survey: Survey
    tokenizer: Any
    context: int
    batch_size: int
    num_classes: int
    beginning: str
    notes: list[str]

    @property
    def names(self) -> list[str]:
        return [side.name for side in self.candidates]

    def begins_at(self, batch: Batch, row: int) -> str:
        """The place of a batch's row, in words."""
        labels = batch.labels()
        document, position = int(labels["document"][row]), int(labels["position"][row])
        name = next((name for i, (name, _) in enumerate(self.text.names()) if i == document), str(document))
        return f"document {document} ({name}), position {position}"

    def refused(self, batch: Batch, found: NotFinite) -> BadInput:
        """The error for a row that is no distribution."""
        side = self.reference if found.whose < 0 else self.candidates[found.whose]
        return BadInput(
            f"{side.name}: its scores are not finite at {self.begins_at(batch, found.row)}: NaN or infinity. Nothing "
            "can be compared there; look at that model in another dtype (--dtype float32), or leave the document out"
        )


def make_plan(given: Given, settings: Settings) -> Plan:
    """Open everything. Raises: BadInput, MissingExtra."""
    reference = _reference(given, settings)
    candidates = [
        open_side(given.at(each), name, device=settings.device, dtype=settings.dtype) for name, each in given.candidates
    ]
    if not candidates and settings.save_reference is None:
        raise BadInput("there is no candidate; name a model beside the reference, or --save-reference to store a run")
    _distinct(reference, candidates)
    tokenizer = next(
        (t for t in (given.tokenizer, reference.tokenizer, *(c.tokenizer for c in candidates)) if t is not None), None
    )
    declared, batch_size, source = settings.num_classes, settings.batch_size, _named(given.text)
    if isinstance(reference, Stored | BaseReference):
        reference.device = next((c.device for c in candidates if isinstance(c, ModelSide)), reference.device)
        source = str(given.reference)
        text: Reading = reference
    if isinstance(reference, Stored):
        context, batch_size, declared = _of_stored(reference, settings)
        notes = _check_stored(reference, settings, given, candidates, tokenizer)
        survey, beginning = reference.survey, reference.about_run.beginning
    elif isinstance(reference, BaseReference):
        context = reference.file.n_ctx
        notes, beginning = _check_base(reference, settings, given, candidates, tokenizer)
        survey = Survey.of(text)
    else:
        context = _context(settings, [reference, *candidates])
        notes = guards.check_tokenizers(reference, candidates)
        text = _text(given, settings, tokenizer, context)
        survey, beginning = Survey.of(text), guards.about_beginning(tokenizer)
        notes += [_OF_CHUNKS] if settings.saves_base_file else []
    first = next(batches(text, 1))
    probe = Batch(0, (Piece(0, [0, 0], 1, 1),))  # a token that every model has
    sizes = {side.name: side.rows(probe).num_classes for side in (reference, *candidates)}
    num_classes, more = guards.classes(sizes, tokenizer, declared, survey)
    plan = Plan(
        reference, candidates, text, source, survey, tokenizer, context, batch_size, num_classes, beginning,
        [beginning, *notes, *more],
    )  # fmt: skip
    _try(plan, first)
    return plan


_OF_CHUNKS = (
    "The text is read as llama.cpp reads it: all documents in one row, cut into chunks, of which the second half is "
    "scored. Errors are clustered by chunk, and neighbouring chunks are not independent: they are lower bounds."
)


def _reference(given: Given, settings: Settings) -> Side:
    path = given.at(given.reference)
    kept = is_stored(path) or is_base_file(path)
    if not kept:
        return open_side(path, device=settings.device, dtype=settings.dtype)
    if settings.save_reference is not None:
        raise BadInput("--save-reference: the reference is a stored run already")
    return Stored(Path(path)) if is_stored(path) else BaseReference(Path(path))


def _of_stored(stored: Stored, settings: Settings) -> tuple[int, int, int]:
    """(context, batch size, classes): those of the stored run."""
    about = stored.about_run
    asked: Mapping[str, tuple[Any, Any]] = {
        "--context": (settings.context, about.context),
        "--limit": (settings.limit, about.limit),
        "--num-classes": (settings.num_classes, about.num_classes),
    }
    _leave_out(asked)
    return about.context, about.batch_size, about.num_classes


def _check_stored(
    stored: Stored, settings: Settings, given: Given, candidates: Sequence[Side], tokenizer: Any
) -> list[str]:
    """Only against the same text and tokenizer. Raises: BadInput."""
    about, notes = stored.about_run, []
    guards.check_context(about.context, candidates)
    for side in candidates:
        if side.tokenizer is None or about.tokenizer_hash is None:
            whose = side.name if side.tokenizer is None else "the stored run"
            notes.append(f"There is no tokenizer of {whose}: that ids mean the same tokens was not checked.")
        elif tokenizer_hash(side.tokenizer) != about.tokenizer_hash:
            raise BadInput(
                f"{side.name}: has another tokenizer than the one with which {stored.folder} was stored; compare "
                "models of one tokenizer, or store the reference again"
            )
    if given.text is not None:
        now = Survey.of(Cut(given.at(given.text), _needed(tokenizer), about.context, about.limit))
        if now.fingerprint != stored.survey.fingerprint:
            raise BadInput(
                f"--text {_named(given.text)}: is not the text of {stored.folder} ({now.tokens:,} tokens here, "
                f"{stored.survey.tokens:,} there); leave --text out, the stored run holds its text"
            )
    if stored.bounds:
        notes.append(
            f"The reference is stored as its {about.k} likeliest tokens: every divergence from it is that of these and "
            "of the rest as one event, a lower bound of the whole one."
        )
    return notes


def _check_base(
    base: BaseReference, settings: Settings, given: Given, candidates: Sequence[Side], tokenizer: Any
) -> tuple[list[str], str]:
    """(notes, how chunks begin). Raises: BadInput."""
    _leave_out({"--context": (settings.context, base.file.n_ctx), "--limit": (settings.limit, None)})
    guards.check_context(base.file.n_ctx, candidates)
    notes = guards.check_tokenizers(candidates[0], candidates[1:]) if candidates else []
    begin = tokenizer.bos_token_id if tokenizer is not None and begins(tokenizer) else None
    base.begin = begin
    if given.text is not None:
        chunks = Chunks(given.at(given.text), _needed(tokenizer), base.file.n_ctx)
        if (where := same_ids(base, chunks.ids())) is not None:
            raise BadInput(
                f"--text {_named(given.text)}: is not the text of {base.path}, or another tokenizer split it: token "
                f"{where[1]} of chunk {where[0]} differs; leave --text out, the file holds its tokens"
            )
    else:
        notes.append(
            f"{base.path.name} holds token ids and no tokenizer: that they mean the candidates' tokens was checked by "
            "nothing but their range. With --text they are compared with the text's."
        )
    notes += [
        _OF_CHUNKS,
        "llama.cpp's base file has 16 bits a class: no divergence below about 1e-9 nats a token means anything, and "
        "what is more than 16 nats below the likeliest token is stored as 16 nats below it.",
    ]
    if begin is None:
        return notes, "Chunks begin with the tokens of the text."
    return notes, f"A beginning-of-text token (id {begin}) stands in place of the first token of each chunk."


def _leave_out(asked: Mapping[str, tuple[Any, Any]]) -> None:
    for option, (value, was) in asked.items():
        if value is not None and value != was:
            stored = "holds all of its run" if was is None else f"was stored with {was}"
            raise BadInput(f"{option} {value}: the reference {stored}; leave it out")


def _needed(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise BadInput("--text cannot be checked without a tokenizer; leave it out, the reference holds its text")
    return tokenizer


def _context(settings: Settings, sides: Sequence[Side]) -> int:
    longest = [side.longest for side in sides if side.longest is not None]
    if settings.context is None:
        return min([CONTEXT, *longest])
    guards.check_context(settings.context, sides)
    return settings.context


def _text(given: Given, settings: Settings, tokenizer: Any, context: int) -> Reading:
    if given.text is None:
        raise BadInput("there is no text to compare on; write --text FILE or --text FOLDER")
    if tokenizer is None:
        raise BadInput("no model has a tokenizer; give one (tokenizer=AutoTokenizer.from_pretrained(folder))")
    reading = Chunks if settings.saves_base_file else Cut
    return reading(given.at(given.text), tokenizer, context, settings.limit)


def _named(text: Source | None) -> str:
    if isinstance(text, str | Path):
        return str(text)
    return f"{len(text or ())} documents"


def _distinct(reference: Side, candidates: Sequence[Side]) -> None:
    """Names by which results can tell sides apart: a second one gets a number."""
    taken = {reference.name}
    for side in candidates:
        name, i = side.name, 2
        while side.name in taken:
            side.name, i = f"{name} ({i})", i + 1
        taken.add(side.name)


def _try(plan: Plan, first: Batch) -> None:
    """One piece through everything: what fails at once fails before a folder is made."""
    rows = [side.rows(first, plan.num_classes) for side in (plan.reference, *plan.candidates)]
    try:
        measure(first, rows[0], rows[1:])
    except NotFinite as found:
        raise plan.refused(first, found) from None
