"""How a command carries out a job that keeps what it has done in a run folder and can go on with it."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kullback._errors import BadInput

from .ending import STOPPED, fail, of_system
from .files import dump_json
from .progress import progress

FAILED = 1  # the exit code where a file could not be written


class Results(Protocol):
    """What a job has found so far, and the folder that keeps it."""

    folder: Path

    def to_json(self) -> dict[str, Any]:
        """One document."""
        ...

    def kept(self) -> str:
        """What the folder holds by now, such as "3 finished students"."""
        ...


Begun = Callable[[Any, str], None]
"""Called once, when the run folder exists: the results, which will grow, and a sentence that says what will be done."""
Show = Callable[[int, int, str], None]
"""Units done, units in all, what is being done."""


def carry_out(name: str, work: Callable[[Show, Begun], Any], *, as_json: bool, of: str) -> Any:
    """Run or go on with a job; say how far it is and, if it is stopped, what is kept and how to go on.

    Args:
        name: of the command, such as "kullback distill".
        work: the job; raises KeyboardInterrupt(results) if it was stopped after it had begun.
        as_json: print what was found before a stop as one document.
        of: the extra to name where rich is missing.

    Returns: what `work` does.  Raises: SystemExit, after one line on standard error.
    """
    grown: list[Results] = []

    def begun(results: Results, plan: str) -> None:
        grown.append(results)
        print(f"{name}: {plan}; kept in {results.folder}", file=sys.stderr, flush=True)

    try:
        with progress(name, of=of) as shown:
            return work(shown.show, begun)
    except KeyboardInterrupt as stop:
        partial = stop.args[0] if stop.args else None
        if partial is None:
            fail(name, "interrupted before anything was written", STOPPED)
        if as_json:
            print(dump_json(partial.to_json()))
        fail(name, f"interrupted; {_go_on(name, partial)}", STOPPED)
    except OSError as error:
        if not grown:
            raise
        fail(name, f"{of_system(error)}; {_go_on(name, grown[0])}", FAILED)


def _go_on(name: str, results: Results) -> str:
    folder = results.folder
    return f"{folder} holds {results.kept()}, as incomplete. Go on with: {name} --resume {shlex.quote(str(folder))}"


def resumed_alone(context: Any, *besides: str) -> None:
    """--resume takes its settings from the folder: refuse any other option but --json and those named.

    Args: context: typer's.  Raises: BadInput.
    """
    arguments = {p.name for p in context.command.params if p.param_type_name == "argument"}
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("resume", "as_json", *besides) and source is not None and source.name != "DEFAULT":
            option = name.upper() if name in arguments else "--" + name.replace("_", "-")
            raise BadInput(f"--resume goes on with the settings of its folder; leave {option} out")
