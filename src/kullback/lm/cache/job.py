"""The job behind `kullback lm cache`: a teacher is asked about a text, and its answers are kept in a folder."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.kit.extras import extra
from kullback.kit.files import check_free, new_folder
from kullback.kit.unfinished import Unfinished
from kullback.language.caches.format import CacheSettings, Policy
from kullback.language.caches.teacher import ModelTeacher
from kullback.language.caches.writer import Task, Written, write_cache, written
from kullback.language.documents import Document, docstrings, documents, split
from kullback.language.fingerprints import model_fingerprint, tokenizer_hash
from kullback.language.loading import Loaded, load, longest
from kullback.language.small import HELD_OUT, STEPS, small_teacher
from kullback.language.vocabulary import size_of
from kullback.language.windows import token_ids, windows

SMALL = "small"
DOCSTRINGS = "documentation strings of Python's standard library, without those that kullback lm distill holds out"
USUAL_K: dict[Policy, int] = {"top-k": 64, "drawn": 50}
USUAL_CONTEXT = 512
Show = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What to keep of which teacher, and where.

    Args:
        teacher: folder of a transformers model, or "small" for one that is trained here, in the folder OUT-teacher.
        text: file or folder of documents; None for Python's documentation strings.
        policy, k, temperature, overlap, seed, shard_tokens: see `CacheSettings`; k None: 64 likeliest, or 50 draws.
        context: tokens in a window; None: as many as the teacher takes, at most 512.
        out: the folder; None for kullback-lm-cache-<date>-<time> in the current one.
        device: cpu, cuda, ...
        dtype: in which the teacher computes; None for that of its weights.
        batch_size: windows for which it is asked at once.
    """

    teacher: str
    text: Path | None = None
    policy: Policy = "top-k"
    k: int | None = None
    temperature: float = 1.0
    context: int | None = None
    overlap: int = 1
    out: Path | None = None
    device: str = "cpu"
    dtype: str | None = None
    batch_size: int = 8
    seed: int = 0
    shard_tokens: int = 1 << 17
    teacher_steps: int = STEPS

    def check(self) -> None:
        """Refuse what cannot run, with the option to change."""
        if self.policy not in USUAL_K:
            raise BadInput(f"--policy {self.policy}: write {' or '.join(USUAL_K)}")
        for name in ("k", "batch_size", "shard_tokens", "teacher_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name.replace('_', '-')} is {value}, but it must be at least 1")

    def of(self, loaded: Loaded, folder: Path) -> CacheSettings:
        """The cache of that teacher. Raises: BadInput."""
        head = loaded.model.get_output_embeddings()
        config = loaded.model.config.get_text_config()
        classes = int(config.vocab_size if head is None else head.weight.shape[0])
        if (needed := size_of(loaded.tokenizer)) > classes:
            raise BadInput(
                f"{folder}: the tokenizer has {needed} tokens, but the model scores {classes}; they do not belong "
                "together"
            )
        most = longest(loaded.model)
        context = self.context or min(USUAL_CONTEXT, most or USUAL_CONTEXT)
        if most is not None and context > most:
            raise BadInput(f"--context {context}: the teacher {loaded.name} takes {most} tokens; write {most}")
        usual = min(USUAL_K[self.policy], classes) if self.policy == "top-k" else USUAL_K[self.policy]
        return CacheSettings(
            teacher=model_fingerprint(folder),
            tokenizer_hash=tokenizer_hash(loaded.tokenizer),
            num_classes=classes,
            policy=self.policy,
            k=usual if self.k is None else self.k,
            temperature=float(self.temperature),
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            context=context,
            overlap=self.overlap,
            seed=self.seed if self.policy == "drawn" else None,
            shard_tokens=self.shard_tokens,
            text=DOCSTRINGS if self.text is None else str(self.text),
        )


@dataclass
class Results:
    """What a run has written so far."""

    folder: Path
    seconds: float = 0.0
    cache: Written | None = None

    def to_json(self) -> dict[str, Any]:
        """One document."""
        found: dict[str, Any] = {"folder": str(self.folder), "status": "incomplete", "seconds": self.seconds}
        if self.cache is None:
            return found
        cache = self.cache
        return found | {
            "status": "complete" if cache.complete else "incomplete",
            **cache.settings.to_json(),
            "windows": cache.windows,
            "tokens": cache.tokens,
            "bytes": cache.size,
            "bytes_per_token": cache.bytes_per_token,
            "dense_bytes_per_token": cache.dense_bytes_per_token,
            "left_out": cache.left_out,
        }

    def kept(self) -> str:
        """What the folder holds by now."""
        with suppress(BadInput):
            self.cache = written(self.folder)
        return "what was begun" if self.cache is None else f"{self.cache.tokens:,} tokens"


def run(settings: Settings, show: Show, begun: Callable[[Results, str], None]) -> Results:
    """Write a cache, or go on with that of the same settings in the same folder.

    Raises:
        BadInput, MissingExtra.
        KeyboardInterrupt(results), OSError: the folder holds what was finished, and `resume` goes on from there.
    """
    clock = time.perf_counter()
    settings.check()
    for package in ("pyarrow", "transformers", "tokenizers"):
        extra(package, of="lm")
    show(0, 1, "reading the teacher")
    if settings.text is not None and not settings.text.exists():
        raise BadInput(f"--text {settings.text}: no such file or folder; check the path")
    loaded = None if settings.teacher == SMALL else load(settings.teacher, device=settings.device, dtype=settings.dtype)
    if settings.out is not None and not _begun(settings.out):
        check_free(settings.out)
    out = settings.out
    folder = out if out is not None and _begun(out) else new_folder(out, datetime.now(), "kullback-lm-cache")
    results = Results(folder)
    unfinished = Unfinished(folder)
    if written(folder) is None:  # else it is there already, or the settings have to be those of the files
        unfinished.save("run", _saved(settings, folder))
    try:
        if loaded is None:
            place = _small(settings, folder, unfinished, show)
            loaded = load(place, device=settings.device, dtype=settings.dtype)
        else:
            place = loaded.folder
        of = settings.of(loaded, place)
        show(0, 1, "reading the text")
        texts = _texts(settings)
        total = sum(len(task.window.ids) for task in _tasks(texts(), loaded, of))
        begun(results, _plan(of, total))
        results.cache = write_cache(
            folder,
            of,
            _tasks(texts(), loaded, of),
            ModelTeacher(loaded.model, of),
            batch=settings.batch_size,
            on_tokens=lambda done: show(done, total, f"{done:,} of {total:,} tokens"),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(results) from None
    except BadInput:
        if results.cache is None and written(folder) is None:  # nothing that could be gone on with
            unfinished.clear()
            with suppress(OSError):
                folder.rmdir()
        raise
    unfinished.clear()
    results.seconds = time.perf_counter() - clock
    return results


def resume(folder: Path, show: Show, begun: Callable[[Results, str], None]) -> Results:
    """Go on with the run that was stopped in a folder, with its settings. Raises: BadInput; and as `run`."""
    state = Unfinished(folder).load("run")
    if state is None:
        what = "no such folder" if not folder.is_dir() else "no run of kullback lm cache was stopped there"
        raise BadInput(f"--resume {folder}: {what}")
    given = {field.name: state[field.name] for field in fields(Settings)}
    paths = {name: None if given[name] is None else Path(given[name]) for name in ("text", "out")}
    return run(Settings(**given | paths | {"out": folder}), show, begun)


def finished(folder: Path) -> Results | None:
    """A complete cache, of which nothing is left to do."""
    found = written(folder) if folder.is_dir() else None
    return Results(folder, cache=found) if found is not None and found.complete else None


def _begun(folder: Path) -> bool:
    """Whether it holds a cache, whole or not."""
    return folder.is_dir() and (Unfinished(folder).has("run") or written(folder) is not None)


def _saved(settings: Settings, folder: Path) -> dict[str, Any]:
    """As plain values, with paths that hold from any folder."""
    values = asdict(settings) | {"out": str(folder.absolute())}
    values["text"] = None if settings.text is None else str(settings.text.absolute())
    values["teacher"] = SMALL if settings.teacher == SMALL else str(Path(settings.teacher).absolute())
    return values


def _small(settings: Settings, folder: Path, unfinished: Unfinished, show: Show) -> Path:
    """The small teacher beside the cache: in it, datasets would take its files for data."""
    place = folder.absolute().with_name(f"{folder.absolute().name}-teacher")
    if not place.is_dir():
        made = place.with_name(f".{place.name}.part")
        training = unfinished.training("teacher")
        small_teacher(
            made,
            steps=settings.teacher_steps,
            on_step=lambda done, total: show(done, total, "training the small teacher"),
            kept=training,
        )
        made.replace(place)
        training.done()
    return place


def _tasks(texts: Iterable[Document], loaded: Loaded, of: CacheSettings) -> Iterator[Task]:
    for number, document in enumerate(texts):
        ids = token_ids(loaded.tokenizer, document.text)
        for window in windows(ids, of.context, of.overlap):
            yield Task(document.name, number, window)


def _texts(settings: Settings) -> Callable[[], Iterable[Document]]:
    """Gives the documents, each time it is called."""
    if settings.text is not None:
        return partial(documents, settings.text)
    found, _ = split(docstrings(), HELD_OUT)
    return lambda: found


def _plan(of: CacheSettings, total: int) -> str:
    what = f"{of.k} likeliest classes" if of.policy == "top-k" else f"{of.k} draws"
    return f"{what} of {of.num_classes:,} for each of {total:,} tokens, by {of.teacher.name}"
