"""How long `kullback distill` takes, and how much memory, against the number of rows; writes docs/distill.md.

    python bench/distill.py [ROWS ...]

Each size is a table of 50 columns (46 of numbers, 4 of text) and 8 classes, made by scikit-learn's
`make_classification` and written as CSV; the job runs on it with its defaults, in a process of its own. CPU seconds are
user and system time of that process, memory its largest resident set. Without ROWS: 1,000 to 1,000,000.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.datasets import make_classification

from kullback.kit.files import write_bytes
from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, drawn

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1_000, 10_000, 100_000, 1_000_000)
NUMBERS, CLASSES = 46, 8
TEXT = {"city": 12, "plan": 3, "channel": 5, "language": 8}  # columns of text, and how many values


def table(rows: int) -> pl.DataFrame:
    """The same rows for the same number."""
    x, y = make_classification(
        rows,
        NUMBERS,
        n_informative=20,
        n_redundant=10,
        n_classes=CLASSES,
        n_clusters_per_class=2,
        class_sep=1.5,
        flip_y=0.02,
        random_state=0,
    )
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {f"x{i}": x[:, i].round(4) for i in range(NUMBERS)}
    for name, many in TEXT.items():  # a noisy view of a column, cut into as many parts
        seen = x[:, rng.integers(NUMBERS)] + rng.normal(size=rows)
        cuts = np.quantile(seen, np.linspace(0, 1, many + 1)[1:-1])
        columns[name] = np.array([f"{name} {chr(97 + i)}" for i in range(many)])[np.searchsorted(cuts, seen)]
    columns["kind"] = np.array([f"class {c}" for c in range(CLASSES)])[y]
    return pl.DataFrame(columns)


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Run the job in a process of its own."""
    path = folder / f"{rows}.csv"
    if not path.exists():
        table(rows).write_csv(path)
    command = [sys.executable, "-m", "kullback.cli", "distill", str(path), "--target", "kind", "--json"]
    out = folder / f"run-{rows}-{os.getpid()}"
    before = os.getloadavg()[0]
    start = time.perf_counter()
    with (folder / "document.json").open("wb") as file:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{rows} rows: exit status {status}")
    document = json.loads((folder / "document.json").read_text())
    return {
        "rows": rows,
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
        "file": path.stat().st_size / 2**20,
        "load": before,
        "teacher": document["teacher"]["accuracy"],
        **{kind: document["students"][kind]["accuracy"] for kind in document["students"]},
        "teacher seconds": document["teacher"]["seconds"],
        "student seconds": sum(sum(s["seconds"]["values"]) for s in document["students"].values()),
    }


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    with tempfile.TemporaryDirectory(prefix="kullback-bench-", dir=os.environ.get("TMPDIR")) as folder:
        found = []
        for rows in sizes:
            found.append(measure(rows, Path(folder)))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
