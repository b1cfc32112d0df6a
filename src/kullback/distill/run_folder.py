"""The folder that a run leaves: every file appears whole or not at all, and nothing existing is overwritten."""

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import BadInput


def new_folder(out: Path | None, now: datetime) -> Path:
    """Make the run folder. Raises: BadInput for one that holds something already, or cannot be made."""
    check_free(out)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {out}: cannot be made ({error.strerror}); name another folder") from None
        return out
    stem = f"kullback-distill-{now:%Y%m%d-%H%M%S}"
    for name in (stem, *(f"{stem}-{i}" for i in range(2, 100))):
        try:
            Path(name).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise BadInput(f"{name}: cannot be made here ({error.strerror}); name a folder with --out") from None
        return Path(name)
    raise BadInput(f"{stem} to -99 exist already; name a folder with --out")


def check_free(out: Path | None) -> None:
    """Refuse a run folder that exists and is not empty."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"--out {out}: is a file; nothing was overwritten, name another folder")
    if any(out.iterdir()):
        raise BadInput(f"--out {out}: exists and is not empty; nothing was overwritten, name another folder")


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
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
