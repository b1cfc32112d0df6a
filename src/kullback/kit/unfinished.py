"""What a run that was stopped needs to go on: a folder in the run folder that goes with the run's end."""

import io
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kullback._errors import BadInput

from .files import write_bytes

EVERY = 15.0  # seconds between two saves of a training


class Unfinished:
    """Plain values and tensors by name, each written whole or not at all."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "unfinished"

    def has(self, name: str) -> bool:
        """Whether something was saved under this name."""
        return self._path(name).is_file()

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under this name, if anything."""
        if not self.has(name):
            return None
        state: dict[str, Any] = torch.load(self._path(name), map_location="cpu", weights_only=True)
        return state

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Raises: OSError."""
        self.folder.mkdir(exist_ok=True)
        file = io.BytesIO()
        torch.save(state, file)
        write_bytes(self._path(name), file.getvalue())

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def training(self, name: str) -> "Training":
        """Where the training of that name leaves how far it came."""
        return Training(self, f"{name}, so far")

    def clear(self) -> None:
        """All of it, and what a killed process left half-written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self.folder.parent.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"


class Training:
    """A training's state, saved now and then: see `training.Kept`."""

    def __init__(self, unfinished: Unfinished, name: str) -> None:
        self.unfinished, self.name, self.last = unfinished, name, time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last."""
        return self.unfinished.load(self.name)

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Ask for the state and keep it, unless that was done a moment ago."""
        if time.monotonic() - self.last >= EVERY:
            self.unfinished.save(self.name, state())
            self.last = time.monotonic()

    def done(self) -> None:
        """The training is over and kept elsewhere."""
        self.unfinished.forget(self.name)


def document(folder: Path) -> dict[str, Any]:
    """The results.json of a run folder, as far as there is one."""
    path = folder / "results.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def finished(folder: Path) -> dict[str, Any] | None:
    """The results.json of a run that is complete and needs nothing more."""
    found = document(folder)
    return found if found.get("status") == "complete" and not Unfinished(folder).has("run") else None


def begun(folder: Path, versions: Mapping[str, str], what: str = "run") -> dict[str, Any]:
    """What was saved as "run" when a job began, with the `versions` of what computed it, in order to go on with it.

    Args: what: the folder keeps, such as "comparison".
    Raises: BadInput: there is nothing to go on with, or other versions compute now.
    """
    state = Unfinished(folder).load("run")
    if state is None:
        if not folder.is_dir():
            why = "no such folder"
        elif finished(folder) is not None:
            why = f"that {what} is complete, and has nothing left to do"
        else:
            why = f"is no folder of a {what}, or it was stopped before it began; begin anew"
        raise BadInput(f"--resume {folder}: {why}")
    if state["versions"] != versions:
        was, now = (", ".join(f"{name} {v[name]}" for name in v) for v in (state["versions"], versions))
        raise BadInput(f"--resume {folder}: it was begun with {was}; here is {now}, which may give other numbers")
    return state
