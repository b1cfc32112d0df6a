"""The notebooks run, from top to bottom in a process of their own, and show what their text says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "docs" / "notebooks"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# what the text of a notebook claims of the variables that its cells leave
CLAIMS = {
    "1-distil-a-classifier": """
right = {name: curve[-1] for name, curve in curves.items()}
assert right["both"] > right["labels only"] + 0.05 and right["teacher only"] > right["labels only"] + 0.05, right
with torch.no_grad():
    far = {name: kl(Logits(advice[test]), Logits(student(images[test]))).mean() for name, student in students.items()}
assert far["teacher only"] < far["both"] < far["labels only"], far
""",
    "2-distil-a-language-model": """
alone, both = found["labels only"], found["teacher and labels"]
assert both["eval_kl"] < 0.7 * alone["eval_kl"] and both["eval_hard"] < alone["eval_hard"], found
""",
    "3-compare-a-quantised-model": """
kl = {name: mean(name)["value"] for name in candidates}
assert 0 < kl["int8"] < kl["int4"] < kl["int3"] and kl["bfloat16"] < kl["int4"], kl
assert found.complete and found.measured == 5000 and len(changed) > 0
""",
    "4-watch-a-table": """
assert [one.name for one in found.columns if one.drift] == ["weather"], found.columns
largest = sorted(first.cells, key=lambda one: -one.contribution)[:2]
assert first.name == "weather" and {"rain", "fog"} == {one.label for one in largest}, largest
assert {alarm.column for alarm in seen.alarms} == {"weather"}, seen.alarms
""",
}


def notebooks():
    return sorted(page.stem for page in NOTEBOOKS.glob("*.md") if page.name != "README.md")


def cells(name):
    return CELL.findall((NOTEBOOKS / f"{name}.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", notebooks())
def test_a_notebook_is_one_to_jupyter_too(name):
    jupytext = pytest.importorskip("jupytext")
    read = jupytext.read(NOTEBOOKS / f"{name}.md")
    assert [cell.source.strip() for cell in read.cells if cell.cell_type == "code"] == [c.strip() for c in cells(name)]
    assert read.metadata["kernelspec"]["name"] == "python3"


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks())
def test_a_notebook_runs_and_shows_what_it_says(name, tmp_path):
    for needed in ("matplotlib", "polars", "sklearn", "transformers", "vega_datasets"):
        pytest.importorskip(needed)
    script = tmp_path / "notebook.py"
    script.write_text("\n".join([*cells(name), CLAIMS[name]]), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        timeout=1200,
    )
    assert run.returncode == 0, run.stdout + run.stderr
