"""What can go wrong before training starts, and optional packages."""

import difflib
import importlib
from typing import Any

from kullback._errors import BadInput, MissingExtra

__all__ = ["BadInput", "MissingExtra", "extra", "near"]


def extra(module: str, of: str = "distill") -> Any:
    """The optional module, or the one-line error that names the extra `of` kullback to install.

    Raises: MissingExtra.

    >>> extra("json").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        raise MissingExtra(f"the package {name!r} is not installed; write: pip install 'kullback[{of}]'") from None


def near(wrong: str, choices: list[str]) -> str:
    """The choices nearest to a misspelt name, or all of a short list.

    >>> near("targt", ["a", "target"])
    'target'
    """
    lower = {choice.lower(): choice for choice in choices}
    matches = [lower[match] for match in difflib.get_close_matches(wrong.lower(), lower, n=4, cutoff=0.5)]
    return ", ".join(matches or choices[:12]) + (", ..." if not matches and len(choices) > 12 else "")
