"""What a teacher brings to a small language model, and what a cache of it loses; writes into docs/lm.md.

    python bench/lm.py FOLDER [STEPS]

Runs `kullback lm distill` with its defaults in a process of its own, whose CPU seconds are user and system time, unless
FOLDER holds that run already. Then
keeps its teacher in caches and trains the same student from each: same initialisation, same text in the same order by
seed, so that held-out KL differs from the live teacher's by what the cache lost. Differences are paired by document and
seed; their standard errors are clustered by document. FOLDER-caches keeps what was trained, to go on from. STEPS:
of the students that are compared; by default those of the run.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from kullback.kit.files import write_bytes, write_json
from kullback.language.loading import load
from kullback.lm.cache import job as cache_job
from kullback.lm.distill import measures
from kullback.lm.distill.material import Material, Texts
from kullback.lm.distill.settings import ARMS, Settings
from kullback.lm.distill.training import curve_of, train_student

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FOUND = DOCS / "lm.md", DOCS / "lm.json"
BEGIN, END = "<!-- written by bench/lm.py: {} -->\n", "<!-- until here -->\n"
CACHES: dict[str, dict[str, Any]] = {
    "top 64": {"policy": "top-k", "k": 64},
    "50 draws": {"policy": "drawn", "k": 50},
}
LIVE = "the live teacher"
FORMS = (
    ("top 64, one bucket for the rest", "top 64", "bucket"),
    ("top 64, even shares for the rest", "top 64", "even"),
    ("top 64, renormalised", "top 64", "renormalize"),
    ("50 draws", "50 draws", "bucket"),
)


def default_run(out: Path) -> dict[str, float]:
    """Of `kullback lm distill`: CPU and wall seconds, and the load."""
    command = [sys.executable, "-m", "kullback.cli", "lm", "distill", "--out", str(out)]
    before, start = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"kullback lm distill: exit status {status}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - start, "load": before, "memory": usage.ru_maxrss / 1024}


def students_of(material: Material, folder: Path) -> list[Any]:
    """One a seed, trained from what `material` says the teacher is."""
    found = []
    for seed in material.settings.seed_range():
        place = folder / str(seed)
        if curve_of(place) is None:
            train_student(material, ARMS[0], seed, place)
        found.append(load(place).model)
    return found


def main(run: Path, steps: int | None) -> None:
    work, before = run.with_name(f"{run.name}-caches"), json.loads(FOUND.read_text()) if FOUND.exists() else {}
    cost = before.get("cost")
    if not (run / "results.json").exists():
        cost = default_run(run)
        write_json(FOUND, before | {"cost": cost})
    document = json.loads((run / "results.json").read_text())
    teacher = run / "teacher"
    settings = replace(Settings(), teacher=teacher, steps=steps)
    texts = Texts.of(settings)
    sizes = {}
    for name, choices in CACHES.items():
        print(f"cache: {name}", flush=True)
        given = cache_job.Settings(teacher=str(teacher), out=work / name, **choices)
        sizes[name] = cache_job.run(given, lambda *_: None, lambda *_: None).to_json()
    live = Material.of(settings, texts, teacher)
    students = {LIVE: students_of(live, work / "students" / "live")}
    for name, cache, tail in FORMS:
        print(f"students: {name}", flush=True)
        material = Material.of(replace(settings, cache=work / cache, tail=tail), texts, teacher)
        assert material.train == live.train
        students[name] = students_of(material, work / "students" / name)
    everybody = [model for models in students.values() for model in models]
    counts, (_, *sums) = measures.measure(live.teacher.model, everybody, live.held_out, live.classes)
    seeds, rows = settings.seeds, []
    by_form = {name: sums[i * seeds : (i + 1) * seeds] for i, name in enumerate(students)}
    for name, found in by_form.items():
        of = next((cache for form, cache, _ in FORMS if form == name), None)
        apart = [one.kl - other.kl for one, other in zip(found, by_form[LIVE], strict=True)]
        rows.append(
            {
                "name": name,
                "kl": measures.number(measures.pooled([each.kl for each in found], counts)),
                "perplexity": measures.exponential(measures.pooled([each.nll for each in found], counts)),
                "difference": measures.number(measures.pooled(apart, counts)),
                "by_seed": [float(each.sum() / counts.sum()) for each in apart],
                "bytes": sizes[of]["bytes_per_token"] if of else None,
                "left_out": sizes[of]["left_out"] if of else None,
            }
        )
    here = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    kept = {key: document[key] for key in ("data", "teacher", "students", "difference", "seeds", "settings", "seconds")}
    for each in kept["students"]:
        del each["curves"]
    for name in ("teacher", "student", "text", "cache", "out"):
        del kept["settings"][name]
    write_json(
        FOUND,
        {
            "date": str(date.today()),
            "machine": here,
            "cost": cost,
            "run": kept,
            "caches": rows,
            "steps": live.settings.steps,
        },
    )
    page = PAGE.read_text()
    found = json.loads(FOUND.read_text())
    for name, text in (("the default run", run_table(found)), ("caches", cache_table(found))):
        begin = BEGIN.format(name)
        head, rest = page.split(begin)
        page = head + begin + text + rest[rest.index(END) :]
    write_bytes(PAGE, page.encode())


def run_table(found: dict[str, Any]) -> str:
    """The default run."""
    run, cost = found["run"], found["cost"]
    data, teacher = run["data"], run["teacher"]
    seconds = f"{run['seconds']:.0f} s, beside other work"
    if cost is not None:
        seconds = f"{cost['cpu']:.0f} CPU seconds, {cost['wall']:.0f} s beside other work (load {cost['load']:.1f})"
    train = data["documents"] - data["held_out_documents"]
    lines = [
        f"`python bench/lm.py`, {found['machine']}: {data['train_tokens']:,} tokens of "
        f"{train} documents to train on, {data['held_out_tokens']:,} tokens of "
        f"{data['held_out_documents']} held out; seeds {', '.join(map(str, run['seeds']))}. "
        f"{seconds}.",
        "",
        "| | parameters | perplexity | KL(teacher‖student), nats a token | over seeds | same likeliest token, % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| the teacher | {teacher['parameters']:,} | {pm(teacher['perplexity'], '.1f')} | 0 | | |",
    ]
    for each in run["students"]:
        over = each["kl"]["stderr_over_seeds"]
        spread = "" if over is None else f"± {over:.4f}"
        lines.append(
            f"| student {each['name']} | {each['parameters']:,} | {pm(each['perplexity'], '.1f')} | "
            f"{pm(each['kl'], '.4f')} | {spread} | {pm(each['same_top'], '.1f', 100)} |"
        )
    kl, ratio = (run["difference"][name] for name in ("kl", "perplexity_ratio"))
    lines += [
        "",
        f"From the teacher less from labels alone, paired by document and seed: KL {kl['value']:.4f} (95 %: "
        f"{kl['low']:.4f} to {kl['high']:.4f}; by seed {', '.join(f'{x:.4f}' for x in kl['by_seed'])}); perplexity "
        f"times {ratio['value']:.3f} (95 %: {ratio['low']:.3f} to {ratio['high']:.3f}).",
    ]
    return "\n".join(wrapped(lines)) + "\n"


def cache_table(found: dict[str, Any]) -> str:
    """What each cache loses."""
    lines = [
        f"{found['steps']} steps, seeds {', '.join(map(str, found['run']['seeds']))}, held-out text as above:",
        "",
        "| the student learns from | bytes a token | mass left out | held-out KL | less the live teacher's | by seed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["caches"]:
        size = "" if row["bytes"] is None else f"{row['bytes']:.0f}"
        mass = "" if row["left_out"] is None else f"{100 * row['left_out']:.1f} %"
        less = "" if row["bytes"] is None else pm(row["difference"], "+.4f")
        seeds = "" if row["bytes"] is None else ", ".join(f"{x:+.4f}" for x in row["by_seed"])
        lines.append(f"| {row['name']} | {size} | {mass} | {pm(row['kl'], '.4f')} | {less} | {seeds} |")
    return "\n".join(lines) + "\n"


def pm(number: dict[str, Any], form: str, scale: float = 1.0) -> str:
    """value ± standard error."""
    return f"{scale * number['value']:{form}} ± {scale * number['stderr']:{form.lstrip('+')}}"


def wrapped(lines: list[str]) -> list[str]:
    """Prose at 120 columns; tables as they are."""
    import textwrap

    return [part for line in lines for part in ([line] if line[:1] in ("|", "") else textwrap.wrap(line, 120))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
