"""What can go wrong before training starts, and optional packages."""

import importlib
from typing import Any

from kullback._errors import KullbackError


class BadInput(KullbackError, ValueError):
    """The data, the teacher, a setting or the run folder cannot be used; one line says what to do."""


class MissingExtra(KullbackError, ImportError):
    """A package of the `distill` extra is not installed."""


def extra(module: str) -> Any:
    """The optional module, or the error that says how to install it.

    Raises: MissingExtra.

    >>> extra("json").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        raise MissingExtra(f"the package {name!r} is not installed; write: pip install 'kullback[distill]'") from None


def near(wrong: str, choices: list[str]) -> str:
    """The choices nearest to a misspelt name, or all of a short list.

    >>> near("targt", ["a", "target"])
    'target'
    """
    difflib = importlib.import_module("difflib")
    lower = {choice.lower(): choice for choice in choices}
    matches = [lower[match] for match in difflib.get_close_matches(wrong.lower(), lower, n=4, cutoff=0.5)]
    return ", ".join(matches or choices[:12]) + (", ..." if not matches and len(choices) > 12 else "")
