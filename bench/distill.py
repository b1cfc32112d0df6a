"""How long `kullback distill` takes, and how much memory, against the number of rows; writes into docs/distill.md.

    python bench/distill.py [ROWS ...]

Each size is a table of 50 columns (46 of numbers, 4 of text) and 8 classes, made by scikit-learn's
`make_classification` and written as CSV; the job runs on it with its defaults, in a process of its own. CPU seconds are
user and system time of that process, memory its largest resident set. Without ROWS: 1,000 to 1,000,000; other sizes
keep what was measured before (docs/distill.json).
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

from kullback.kit.files import write_bytes, write_json
from kullback.kit.pictures import BLUE, GREEN, INK, ORANGE, drawn

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FOUND, PICTURE = DOCS / "distill.md", DOCS / "distill.json", DOCS / "images" / "distill-growth.svg"
BEGIN, END = "<!-- written by bench/distill.py -->\n", "<!-- until here -->\n"
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
    students = document["students"]
    return {
        "rows": rows,
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
        "load": before,
        "date": date.today().isoformat(),
        "teacher": document["teacher"]["accuracy"],
        **{kind: students[kind]["accuracy"]["mean"] for kind in students},
        "gain": [document["differences"]["both - labels only"]["accuracy"][key] for key in ("mean", "stderr")],
    }


def page(found: list[dict[str, Any]]) -> str:
    """The part of docs/distill.md that holds measured numbers."""
    lines = [
        BEGIN,
        "![CPU seconds and memory against rows](images/distill-growth.svg)\n\n",
        f"`python bench/distill.py`, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}. CPU "
        "seconds are user and system time of the whole\ncommand, from its start to the report; other work shared the "
        "machine, at the load average given.\n\n",
        "| rows | CPU s | wall s | load | peak MiB | teacher, % | labels only, % | teacher only, % | both, % "
        "| both - labels only |\n",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    for f in found:
        accuracies = " | ".join(f"{100 * f[k]:.2f}" for k in ("teacher", "labels only", "teacher only", "both"))
        mean, error = (100 * x for x in f["gain"])
        lines.append(
            f"| {f['rows']:,} | {f['cpu']:.0f} | {f['wall']:.0f} | {f['load']:.0f} | {f['memory']:,.0f} "
            f"| {accuracies} | {mean:+.2f} ± {error:.2f} |\n"
        )
    return "".join([*lines, END])


def draw(figure: Any, found: list[dict[str, Any]]) -> None:
    """Two panels over the rows, both axes logarithmic: straight lines of slope one are linear growth."""
    rows = [f["rows"] for f in found]
    left, right = figure.subplots(1, 2)
    for axes, key, colour, label in (
        (left, "cpu", BLUE, "CPU seconds"),
        (right, "memory", ORANGE, "peak memory, MiB"),
    ):
        axes.grid(visible=True, axis="y", linewidth=0.8)
        axes.plot(rows, [f[key] for f in found], color=colour, marker="o", label="measured")
        last = found[-1]
        axes.plot(
            rows,
            [last[key] * n / last["rows"] for n in rows],
            color=INK,
            linestyle=":",
            label="linear through the last",
        )
        axes.set(xscale="log", yscale="log", xlabel="rows of the table", ylabel=label)
        axes.legend()
    left.axhline(300, color=GREEN, linewidth=1)
    left.annotate("5 minutes", (rows[0], 300), textcoords="offset points", xytext=(0, 3), color=INK, fontsize=9)


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or list(SIZES)
    found = {f["rows"]: f for f in json.loads(FOUND.read_text())["found"]} if FOUND.exists() else {}
    with tempfile.TemporaryDirectory(prefix="kullback-bench-") as folder:
        for rows in sizes:
            found[rows] = measure(rows, Path(folder))
            print(json.dumps(found[rows]), file=sys.stderr, flush=True)
    ordered = [found[rows] for rows in sorted(found)]
    write_json(FOUND, {"found": ordered})
    picture = drawn(lambda figure: draw(figure, ordered), size=(8.0, 3.4), of="distill", salt="distill")
    write_bytes(PICTURE, picture)
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    write_bytes(PAGE, (head + page(ordered) + rest.split(END)[1]).encode())


if __name__ == "__main__":
    main()
