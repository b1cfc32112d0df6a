"""What is compared with what on which text, opened and checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.language.fingerprints import tokenizer_hash

from . import guards
from .measuring import NotFinite, measure
from .settings import CONTEXT, Settings
from .sides import ModelSide, Side, open_side
from .store import Stored, is_stored
from .text import Batch, Cut, Reading, Source, Survey, batches


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
    notes: list[str] = []
    reference = _reference(given, settings)
    candidates = [
        open_side(given.at(each), name, device=settings.device, dtype=settings.dtype) for name, each in given.candidates
    ]
    if not candidates and settings.save_reference is None:
        raise BadInput("there is no candidate; name a model beside the reference, or --save-reference to store a run")
    _distinct(reference, candidates)
    stored = reference if isinstance(reference, Stored) else None
    notes += guards.check_tokenizers(reference, candidates) if stored is None else []
    tokenizer = next(
        (t for t in (given.tokenizer, reference.tokenizer, *(c.tokenizer for c in candidates)) if t is not None), None
    )
    if stored is not None:
        context, batch_size, text = _of_stored(stored, settings, given, candidates, notes)
        survey, beginning, source = stored.survey, stored.about_run.beginning, str(given.reference)
    else:
        context, batch_size = _context(settings, [reference, *candidates]), settings.batch_size
        text = _text(given, settings, tokenizer, context)
        survey, beginning, source = Survey.of(text), guards.about_beginning(tokenizer), _named(given.text)
    first = next(batches(text, 1))
    sizes = {side.name: side.rows(first).form.num_classes for side in (reference, *candidates)}
    declared = settings.num_classes
    if stored is not None:
        if declared not in (None, stored.about_run.num_classes):
            raise BadInput(
                f"--num-classes {declared}: the reference was stored with {stored.about_run.num_classes}; leave it out"
            )
        declared = stored.about_run.num_classes
    num_classes, more = guards.classes(sizes, tokenizer, declared, survey)
    plan = Plan(
        reference, candidates, text, source, survey, tokenizer, context, batch_size, num_classes, beginning,
        [beginning, *notes, *more],
    )  # fmt: skip
    _try(plan, first)
    return plan


def _reference(given: Given, settings: Settings) -> Side:
    path = given.at(given.reference)
    if is_stored(path):
        if settings.save_reference is not None:
            raise BadInput("--save-reference: the reference is a stored run already")
        return Stored(Path(path))
    return open_side(path, device=settings.device, dtype=settings.dtype)


def _of_stored(
    stored: Stored, settings: Settings, given: Given, candidates: Sequence[Side], notes: list[str]
) -> tuple[int, int, Reading]:
    about = stored.about_run
    asked: Mapping[str, tuple[Any, Any]] = {
        "--context": (settings.context, about.context),
        "--limit": (settings.limit, about.limit),
    }
    for option, (value, was) in asked.items():
        if value is not None and value != was:
            raise BadInput(f"{option} {value}: the reference was stored with {was}; leave it out")
    if isinstance(candidates[0], ModelSide):
        stored.device = candidates[0].device
    guards.check_context(about.context, candidates)
    for side in candidates:
        if side.tokenizer is None:
            notes.append(f"{side.name} has no tokenizer, so that its ids mean the reference's could not be checked.")
        elif about.tokenizer_hash is None:
            notes.append("The reference was stored without a tokenizer, so that ids mean the same could not be checked.")
        elif tokenizer_hash(side.tokenizer) != about.tokenizer_hash:
            raise BadInput(
                f"{side.name}: has another tokenizer than the one with which {stored.folder} was stored; compare models "
                "of one tokenizer, or store the reference again"
            )
    if given.text is not None:
        tokenizer = next((side.tokenizer for side in candidates if side.tokenizer is not None), given.tokenizer)
        if tokenizer is None:
            raise BadInput("--text cannot be checked without a tokenizer; leave it out, the stored run holds its text")
        now = Survey.of(Cut(given.at(given.text), tokenizer, about.context, about.limit))
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
    return about.context, about.batch_size, stored


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
    return Cut(given.at(given.text), tokenizer, context, settings.limit)


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

