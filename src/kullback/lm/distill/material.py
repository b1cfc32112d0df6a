"""What a run works on: texts and their windows, the teacher, and what the students read in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kullback._errors import BadInput, FormError
from kullback.forms.sparse import Tail
from kullback.language import small
from kullback.language.caches import TeacherCache
from kullback.language.caches.stored import Row
from kullback.language.documents import Document, docstrings, documents, fingerprint, split
from kullback.language.fingerprints import model_fingerprint, tokenizer_hash
from kullback.language.loading import Loaded, load, load_tokenizer, longest
from kullback.language.vocabulary import size_of
from kullback.language.windows import IGNORED, Window, begins, token_ids, windows

from .settings import Settings

DEFAULT_STEPS = 300
_TAILS: dict[str, Tail] = {"bucket": "bucket", "even": "even", "renormalize": "renormalize"}
LOOK_BYTES = 64 << 20  # of the teacher's scores of the held-out tokens that curves look at


@dataclass(frozen=True)
class Texts:
    """The documents of a run, and which of them are held out."""

    source: str
    train: list[Document]
    held_out: list[Document]

    @classmethod
    def of(cls, settings: Settings, home: Path | None = None) -> "Texts":
        """As the settings say; `home` is where relative paths start. Raises: BadInput."""
        if settings.text is None:
            found, source = docstrings(), "documentation strings of Python's standard library"
        else:
            found, source = tuple(documents((home or Path()) / settings.text)), str(settings.text)
        return cls(source, *split(found, settings.held_out))

    def fingerprint(self) -> str:
        return fingerprint([*self.train, *self.held_out])


@dataclass(frozen=True)
class Material:
    """Everything that students of a run share."""

    settings: Settings  # with numbers for steps and context
    teacher: Loaded
    classes: int  # one more than the largest id of a token
    train: list[Window]
    held_out: list[list[Window]]  # one list a held-out document
    cached: "Cached | None"

    @classmethod
    def of(cls, settings: Settings, texts: Texts, folder: Path, home: Path | None = None) -> "Material":
        """Load the teacher and cut the texts. Raises: BadInput.

        Args: folder: of the teacher.  home: where the relative paths of other folders start.
        """
        teacher = load(folder, device=settings.device)
        cached = None if settings.cache is None else Cached.of(settings, texts, teacher, home or Path())
        settings = settings_for(settings, teacher, None if cached is None else cached.cache.settings.context)
        assert settings.context is not None
        train, held_out = (
            [list(windows(token_ids(teacher.tokenizer, d.text), settings.context)) for d in side]
            for side in (texts.train, texts.held_out)
        )
        rows = [window for each in train for window in each] if cached is None else cached.windows()
        if not rows or not any(held_out):
            raise BadInput(f"{texts.source}: too little text: training and held-out documents need two tokens each")
        classes = size_of(teacher.tokenizer)
        return cls(steps_filled_in(settings, len(rows)), teacher, classes, rows, held_out, cached)

    def student(self, seed: int, home: Path | None = None) -> Any:
        """A student that has learnt nothing here. Raises: BadInput."""
        s, tokenizer = self.settings, self.teacher.tokenizer
        if s.student is not None:
            begun = load((home or Path()) / s.student, device=s.device)
            return begun.model.float().train().requires_grad_(True)
        assert s.context is not None
        config = small.Size(s.hidden, s.layers, s.heads).config(self.classes, s.context)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        return small.new_model(config, seed).to(s.device)

    def num_classes(self, student: Any) -> int | None:
        """How many classes are tokens, where a vocabulary is padded."""
        sizes = {model.config.get_text_config().vocab_size for model in (self.teacher.model, student)}
        return None if sizes == {self.classes} else self.classes

    def look(self) -> list[Window]:
        """Held-out windows for the curves: from the start of each document in turn, as far as memory allows."""
        assert self.settings.context is not None
        most = max(1, LOOK_BYTES // (4 * self.classes * self.settings.context))
        found = []
        for i in range(max(map(len, self.held_out))):
            found += [each[i] for each in self.held_out if i < len(each)]
            if len(found) >= most:
                break
        return found[:most]

    def about(self, texts: Texts) -> dict[str, Any]:
        """For the results."""
        return {
            "source": texts.source,
            "documents": len(texts.train) + len(texts.held_out),
            "held_out_documents": len(texts.held_out),
            "train_tokens": sum(len(w.ids) - w.scored for w in self.train),
            "held_out_tokens": sum(len(w.ids) - w.scored for each in self.held_out for w in each),
            "vocabulary": self.classes,
            "context": self.settings.context,
            "begins_with_bos": begins(self.teacher.tokenizer),
        }


class Ordered(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows in a given order, each as often as the order names it."""

    def __init__(self, row: Callable[[int], dict[str, Any]], order: Sequence[int]) -> None:
        self.row, self.order = row, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.row(self.order[i])


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """`small.collate` of windows, by the names of a model's arguments."""
    ids, labels = small.collate([row["window"] for row in rows])
    return {"input_ids": ids, "labels": labels}


def check_folders(settings: Settings) -> None:
    """What can be told of teacher and student before the text is read. Raises: BadInput."""
    if settings.teacher is None:
        return
    tokenizer = load_tokenizer(settings.teacher)
    if settings.student is not None and tokenizer_hash(load_tokenizer(settings.student)) != tokenizer_hash(tokenizer):
        raise BadInput(
            f"--student {settings.student}: has another tokenizer than the teacher {settings.teacher}; a divergence "
            "compares token by token, so both need the same one"
        )


def settings_for(settings: Settings, teacher: Loaded, cached: int | None) -> Settings:
    """With a context that the teacher can take, and that of the cache where there is one."""
    most = longest(teacher.model)
    context = settings.context or cached or min(small.CONTEXT, most or small.CONTEXT)
    if cached is not None and context != cached:
        raise BadInput(f"--context {context}: the cache holds windows of {cached} tokens; leave --context out")
    if most is not None and context > most:
        raise BadInput(f"--context {context}: the teacher {teacher.name} takes {most} tokens; write {most}")
    return replace(settings, context=context)


def steps_filled_in(settings: Settings, rows: int) -> Settings:
    """With a number of steps, given so many windows to learn from."""
    if settings.steps is not None:
        return settings
    if settings.epochs is None:
        return replace(settings, steps=DEFAULT_STEPS)
    return replace(settings, steps=max(1, round(settings.epochs * rows / settings.batch_size)), epochs=None)


@dataclass(frozen=True)
class Cached:
    """A teacher cache, and which of its windows are of training documents."""

    cache: TeacherCache
    places: list[int]

    @classmethod
    def of(cls, settings: Settings, texts: Texts, teacher: Loaded, home: Path) -> "Cached":
        """Raises: BadInput: it is of another teacher, or of documents that may be held out here."""
        assert settings.cache is not None
        path = home / settings.cache
        try:
            cache = TeacherCache(path, tail=_TAILS[settings.tail])
        except FormError:  # what was drawn has no tail
            cache = TeacherCache(path)
        cache.check_tokenizer(teacher.tokenizer)
        here = model_fingerprint(teacher.folder)
        if cache.settings.teacher.hash != here.hash:
            raise BadInput(
                f"--cache {settings.cache}: is of another teacher, {cache.settings.teacher.name} "
                f"({cache.settings.teacher.hash[:12]}), than {teacher.name} ({here.hash[:12]}); write a cache "
                "of this one"
            )
        if cache.temperature not in (1.0, settings.temperature):
            raise BadInput(
                f"--cache {settings.cache}: keeps the teacher at temperature {cache.temperature:g}; write "
                f"--temperature {cache.temperature:g}"
            )
        train, held_out = ({document.name for document in side} for side in (texts.train, texts.held_out))
        places = []
        for place, row in enumerate(cache.rows()):
            if row.document in train:
                places.append(place)
            elif row.document not in held_out:
                raise BadInput(
                    f"--cache {settings.cache}: holds the document {row.document}, which is not in {texts.source}, so "
                    "whether it is held out cannot be told; give the same --text to both commands"
                )
        return cls(cache, places)

    def windows(self) -> list[Window]:
        """The training windows, as the cache holds them."""
        return [_window(self.cache.row(place)) for place in self.places]

    def item(self, i: int) -> dict[str, Any]:
        """The i-th of them, with what the teacher said."""
        return self.cache.row(self.places[i]).item()


def _window(row: Row) -> Window:
    labels = row.labels.tolist()
    scored = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
    return Window(row.input_ids.tolist(), row.start, scored)
