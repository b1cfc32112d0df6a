"""The job: a teacher, students from it and from labels alone, held-out measures, and a run folder that keeps it all."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kullback._errors import BadInput
from kullback.kit.extras import extra
from kullback.kit.files import check_free, new_folder, write_bytes, write_json
from kullback.kit.unfinished import Unfinished, document
from kullback.kit.unfinished import begun as begun_as
from kullback.language import small
from kullback.language.loading import load

from . import measures, worker
from .examples import examples
from .material import DEFAULT_STEPS, Material, Texts, check_folders
from .results import Outcome, Results, versions
from .settings import ARMS, Arm, Settings

Progress = Callable[[int, int, str], None]  # work done, work in all, what is being done
Begun = Callable[[Results, str], None]  # what will grow, and what will be done
# work units, about a hundredth of a second each on two cores, by which the bar moves
TEACHER_STEP, TAUGHT_STEP, ALONE_STEP, READ, MEASURE = 12, 15, 8, 400, 1000


def run(settings: Settings, progress: Progress | None = None, begun: Begun | None = None) -> Results:
    """Distil a language model into a smaller one, and leave a run folder.

    Args:
        settings: see `Settings`.
        progress: called with (work done, work in all, what is being done).
        begun: called once, when the run folder exists, with the `Results` that will grow and what will be done.

    Returns: `Results`, complete.

    Raises:
        BadInput, MissingExtra: before anything is written.
        KeyboardInterrupt, OSError (a file could not be written): the run folder then holds what was finished, says that
            it is incomplete, and `resume` goes on from there.
    """
    started, clock = datetime.now().astimezone(), time.perf_counter()
    settings.check()
    check_free(settings.out)
    _need_packages()
    check_folders(settings)
    work = _Work(settings, progress)
    work.begin("reading the text")
    texts = Texts.of(settings)
    material = None if settings.teacher is None else Material.of(settings, texts, settings.teacher)
    folder = new_folder(settings.out, started, "kullback-lm-distill")
    unfinished = Unfinished(folder)
    state = {
        "started": started.isoformat(),
        "from": str(Path.cwd()),
        "versions": versions(),
        "threads": _threads(),
        "settings": settings.to_json(),
        "fingerprint": texts.fingerprint(),
    }
    try:
        unfinished.save("run", state)
    except BaseException:
        unfinished.clear()
        raise
    results = Results(settings, folder, started)
    return _go(_Job(results, texts, unfinished, work, Path.cwd(), clock, material), begun)


def resume(folder: Path, progress: Progress | None = None, begun: Begun | None = None) -> Results:
    """Go on with a run that was stopped, to the same results as if it had not been (but for the times).

    Args: folder: of the run.  progress, begun: as for `run`.
    Raises: BadInput: nothing to go on with, other data or other versions than at the start.  And as `run`.
    """
    clock = time.perf_counter()
    _need_packages()
    unfinished = Unfinished(folder)
    state = begun_as(folder, versions())
    if state["threads"] != _threads():
        raise BadInput(
            f"--resume {folder}: it was begun with {state['threads']} threads, here are {_threads()}, which may give "
            f"other numbers; write OMP_NUM_THREADS={state['threads']} before the command"
        )
    settings, home = Settings.from_json(state["settings"]), Path(state["from"])
    settings.check()
    work = _Work(settings, progress)
    work.begin("reading the text")
    texts = Texts.of(settings, home)
    if texts.fingerprint() != state["fingerprint"]:
        raise BadInput(f"--resume {folder}: {texts.source} has changed since; begin anew with another --out")
    results = Results(settings, folder, datetime.fromisoformat(state["started"]))
    before = float(document(folder).get("seconds", 0.0))
    return _go(_Job(results, texts, unfinished, work, home, clock - before), begun)


class _Work:
    """Counts units of work, and tells whoever shows progress."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        self.progress, self.done, self.what, self.stage = progress, 0, "", 0
        self.plan(settings)

    def plan(self, settings: Settings) -> None:
        """How much there is in all."""
        steps = settings.steps or DEFAULT_STEPS
        students = settings.seeds * steps * (TAUGHT_STEP + ALONE_STEP)
        self.total = READ + MEASURE + students + (0 if settings.teacher else settings.teacher_steps * TEACHER_STEP)

    def begin(self, what: str, units: int = 0) -> None:
        """A stage of so many units, after all of the one before."""
        self.done, self.stage, self.what = self.done + self.stage, units, what
        self.at(0, 1)

    def at(self, done: int, of: int) -> None:
        """How far the stage is."""
        if self.progress is not None:
            self.progress(self.done + self.stage * done // max(of, 1), max(1, self.total), self.what)


@dataclass
class _Job:
    """A run at work."""

    results: Results
    texts: Texts
    unfinished: Unfinished
    work: _Work
    home: Path  # where relative paths start
    clock: float  # when it would have begun, had it not been interrupted
    material: Material | None = None  # where it was made already

    def save(self) -> None:
        """results.json, as far as it goes."""
        self.results.seconds = time.perf_counter() - self.clock
        write_json(self.results.folder / "results.json", self.results.to_json())


def _go(job: _Job, begun: Begun | None) -> Results:
    results = job.results
    try:
        write_json(results.folder / "settings.json", results.settings.to_json())
        job.save()
        _work(job, begun)
        results.complete = True
        _report(job)
        job.save()
    except (KeyboardInterrupt, OSError) as stop:
        results.complete = False
        with suppress(OSError):  # what was written before stands
            job.save()
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(results) from stop
        raise
    job.unfinished.clear()
    return results


def _work(job: _Job, begun: Begun | None) -> None:
    results, work, s = job.results, job.work, job.results.settings
    if begun is not None:
        begun(results, _plan(job))
    folder = results.folder / "teacher" if s.teacher is None else job.home / s.teacher
    if s.teacher is None:
        _teach(job, folder)
    work.begin("reading the text", READ)
    material = job.material or Material.of(s, job.texts, folder, job.home)
    results.settings = s = material.settings
    work.plan(s)
    results.data = material.about(job.texts)
    results.notes = _notes(results, material)
    model = material.teacher.model
    results.teacher = {
        "name": material.teacher.name if s.teacher else "small teacher, trained here",
        "parameters": _parameters(model),
        "trained_steps": None if s.teacher else s.teacher_steps,
    }
    write_json(results.folder / "settings.json", s.to_json())
    job.save()
    for seed in s.seed_range():
        for arm in ARMS:
            results.outcomes.append(_student(job, material, arm, seed))
            job.save()
    work.begin("held-out text", MEASURE)
    _measure(job, material)


def _teach(job: _Job, folder: Path) -> None:
    """The small teacher, whole in its folder or not there."""
    s, work = job.results.settings, job.work
    work.begin("teacher", s.teacher_steps * TEACHER_STEP)
    if folder.is_dir():
        return
    place, kept = job.unfinished.folder / "teacher", job.unfinished.training("teacher")
    small.small_teacher(
        place,
        seed=s.seed,
        steps=s.teacher_steps,
        texts=job.texts.train,
        context=s.context or small.CONTEXT,
        on_step=work.at,
        kept=kept,
    )
    place.rename(folder)
    kept.done()


def _student(job: _Job, material: Material, arm: Arm, seed: int) -> Outcome:
    """Train a student, or read what it was."""
    from .training import curve_of, train_student

    s, work = material.settings, job.work
    assert s.steps is not None
    work.begin(f"student {arm}, seed {seed}", s.steps * (TAUGHT_STEP if arm == ARMS[0] else ALONE_STEP))
    place = worker.place_of(job.results.folder, ARMS.index(arm), seed)
    if (kept := curve_of(place)) is None:
        if s.ranks == 1:
            train_student(material, arm, seed, place, home=job.home, on_step=work.at)
        else:
            _on_ranks(job, arm, seed)
        kept = curve_of(place)
        assert kept is not None
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    return Outcome(arm, seed, _parameters(load(place).model), *kept)


def _on_ranks(job: _Job, arm: Arm, seed: int) -> None:
    """The same by torchrun, whose rank 0 says how far it is. Raises: BadInput where it fails."""
    folder, log = job.results.folder, job.unfinished.folder / "ranks.log"
    command = worker.command(job.results.settings.ranks, folder.resolve(), ARMS.index(arm), seed)
    with log.open("wb") as errors, _ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            match line.decode(errors="replace").split():
                case ["step", done, total]:
                    job.work.at(int(done), int(total))
        status = process.wait()
    if status:
        said = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        raise BadInput(
            f"--ranks {job.results.settings.ranks}: torchrun ended with status {status} "
            f"({said[0].strip() if said else 'it said nothing'}); all it said is in {log}"
        )


@contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Ends the process, if it has not, when the work inside is stopped."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _measure(job: _Job, material: Material) -> None:
    """Everybody reads the held-out text once; the first student from the teacher is kept."""
    results, s = job.results, material.settings
    places = [worker.place_of(results.folder, ARMS.index(o.arm), o.seed) for o in results.outcomes]
    students = [load(place, device=s.device).model for place in places]
    counts, (own, *sums) = measures.measure(
        material.teacher.model, students, material.held_out, material.classes, job.work.at
    )
    results.counts, results.teacher_sums = counts, own
    results.outcomes = [replace(outcome, sums=each) for outcome, each in zip(results.outcomes, sums, strict=True)]
    first = {arm: students[i] for i, arm in enumerate(ARMS)}  # both of the first seed
    results.examples = examples(material, [document.name for document in job.texts.held_out], first)
    kept, part = results.folder / "student", job.unfinished.folder / "student"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(places[0], part)
    (part / "curve.json").unlink()
    shutil.rmtree(kept, ignore_errors=True)
    part.rename(kept)


def _report(job: _Job) -> None:
    from .report import render

    job.results.seconds = time.perf_counter() - job.clock
    write_bytes(job.results.folder / "report.html", render(job.results.to_json()).encode())


def _plan(job: _Job) -> str:
    """For people."""
    s, texts = job.results.settings, job.texts
    teacher = f"a teacher of {s.teacher_steps} steps, then " if s.teacher is None else ""
    steps = f"{s.epochs:g} epochs" if s.epochs else f"{s.steps or DEFAULT_STEPS} steps"
    where = f" on {s.ranks} ranks" if s.ranks > 1 else ""
    seeds = f"seed {s.seed}" if s.seeds == 1 else f"seeds {s.seed} to {s.seed + s.seeds - 1}"
    return (
        f"{len(texts.train):,} documents to train on, {len(texts.held_out):,} held out; {teacher}{2 * s.seeds} "
        f"students ({', '.join(ARMS)}; {seeds}; {steps}){where}"
    )


def _notes(results: Results, material: Material) -> list[str]:
    s, data = results.settings, results.data
    assert s.steps is not None
    found = [
        "Both kinds of student: same network, same initialisation and same text in the same order by seed, "
        f"{s.steps:,} steps of {s.batch_size} windows of up to {s.context} tokens, learning rate {s.learning_rate:g}.",
        "A document begins with the tokenizer's beginning-of-text token, and all its tokens are scored."
        if data["begins_with_bos"]
        else "The tokenizer sets no beginning-of-text token, so a document's first token is not scored.",
    ]
    if s.teacher is None:
        found.append("The teacher was trained here on the same training documents; nobody saw the held-out ones.")
    else:
        found.append("What the teacher was trained on is not known here; it may have seen the held-out documents.")
    if s.seeds == 1:
        found.append("One seed: the errors are over documents, and say nothing of another initialisation.")
    if material.cached is not None:
        cache = material.cached.cache
        tail = f", tail {s.tail}" if cache.policy == "top-k" else ""
        found.append(f"The student learns from a cache ({cache.policy}, k = {cache.settings.k}{tail}).")
    return found


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _need_packages() -> None:
    for module in ("transformers", "accelerate", "tokenizers", "safetensors.torch", "jinja2", "matplotlib"):
        extra(module, of="lm")
