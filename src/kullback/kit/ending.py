"""How a command ends: bad input with one line and exit code 2, Ctrl-C and SIGTERM with 130."""

import difflib
import errno
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from kullback._errors import KullbackError

BAD_INPUT = 2
STOPPED = 130


@contextmanager
def ending(command: str) -> Iterator[None]:
    """Run a command's work: an error of kullback, of a file or of memory becomes one line on standard error.

    Args: command: its name, such as "kullback kl", before the line.
    """
    try:
        with stoppable():
            yield
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output has gone
            raise
        fail(command, of_system(error))
    except MemoryError as error:
        fail(command, f"out of memory{f' ({error})' if str(error) else ''}; give it less data")
    except KullbackError as error:
        fail(command, str(error))
    except KeyboardInterrupt:
        fail(command, "interrupted", STOPPED)


def fail(command: str, message: str, code: int = BAD_INPUT) -> NoReturn:
    """Say it in one line on standard error, and end the process."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None


def of_system(error: OSError) -> str:
    """An error of the system as the file and the reason, without its number.

    >>> of_system(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: No such file or directory'
    """
    if error.strerror is None:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM inside raises KeyboardInterrupt, as Ctrl-C does. Only the main thread can arrange it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def near(wrong: str, choices: Sequence[str]) -> str:
    """The choices nearest to a misspelt name, or all of a short list.

    >>> near("targt", ["a", "target"])
    'target'
    """
    lower = {choice.lower(): choice for choice in choices}
    matches = [lower[match] for match in difflib.get_close_matches(wrong.lower(), lower, n=4, cutoff=0.5)]
    return ", ".join(matches or choices[:12]) + (", ..." if not matches and len(choices) > 12 else "")
