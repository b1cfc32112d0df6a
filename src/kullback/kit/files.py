"""Files that appear whole or not at all, folders in which nothing existing is overwritten, strict JSON."""

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from kullback._errors import BadInput


def new_folder(out: Path | None, now: datetime, name: str) -> Path:
    """Make the folder of a run: `out`, or NAME-DATE-TIME in the current folder.

    Raises: BadInput: it holds something already, or cannot be made.
    """
    check_free(out)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
        return out
    stem = f"{name}-{now:%Y%m%d-%H%M%S}"
    for each in (stem, *(f"{stem}-{i}" for i in range(2, 100))):
        try:
            Path(each).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise BadInput(f"{each}: cannot be made here ({error.strerror}); name a folder with --out") from None
        return Path(each)
    raise BadInput(f"{stem} to -99 exist already; name a folder with --out")


def check_free(out: Path | None, option: str = "--out") -> None:
    """Refuse a run folder that exists and is not empty. Raises: BadInput."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"{option} {out}: is a file; nothing was overwritten, name another folder")
    if any(out.iterdir()):
        raise BadInput(f"{option} {out}: exists and is not empty; nothing was overwritten, name another folder")


def check_file(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse, before any work, a file that could not be written afterwards. Raises: BadInput."""
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"{option} {path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise BadInput(f"{option} {path}: is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{option} {path}: there is no folder {path.parent}; create it first")


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the new one, whole.

    Raises: OSError, which names the file and not the temporary one.
    """
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """As `dump_json` writes it."""
    write_bytes(path, (dump_json(value) + "\n").encode())


def dump_json(value: Mapping[str, Any]) -> str:
    """Strict JSON; numbers that it cannot write become the strings "inf", "-inf", "nan".

    >>> print(dump_json({"x": math.inf}))
    {
      "x": "inf"
    }
    """
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
