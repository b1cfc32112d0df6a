"""Pages of measured numbers show what their JSON holds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS, BENCH = ROOT / "docs", ROOT / "bench"


def bench(name, monkeypatch):
    """A script of bench/, which may import its neighbours."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(name):
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def test_the_engines_times(monkeypatch):
    made = bench("engines", monkeypatch).markdown(kept("performance.json"))
    assert made == (DOCS / "performance.md").read_text(encoding="utf-8")


def test_the_times_from_hidden_states(monkeypatch):
    found = kept("performance-linear.json")
    made = bench("linear", monkeypatch).page(found["results"], found["command"])
    assert made == (DOCS / "performance-linear.md").read_text(encoding="utf-8")


def test_the_growth_of_distillation(monkeypatch):
    pytest.importorskip("polars")
    pytest.importorskip("matplotlib")
    made = bench("distill", monkeypatch).page(kept("distill.json")["found"])
    rows = [line for line in made.splitlines() if line.startswith("| ")]
    assert len(rows) > 4
    assert [row for row in rows if row not in (DOCS / "distill.md").read_text(encoding="utf-8")] == []
