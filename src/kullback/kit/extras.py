"""Optional packages."""

import importlib
import sys
from pathlib import Path
from typing import Any

from kullback._errors import MissingExtra


def extra(module: str, of: str) -> Any:
    """The optional module, or the one-line error that names the extra `of` kullback to install.

    Raises: MissingExtra.

    >>> extra("json", of="distill").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        raise MissingExtra(f"the package {name!r} is not installed; write: {install(of)}") from None


def install(of: str) -> str:
    """The line that installs an extra; in a checkout also the one that works from there, whatever is activated."""
    line = f"pip install 'kullback[{of}]'"
    root = Path(__file__).resolve().parents[3]
    if (root / "src" / "kullback").is_dir() and (root / "pyproject.toml").is_file():
        line += f" (in this checkout: {sys.executable} -m pip install -e '{root}[{of}]')"
    return line
