"""The scripts of docs/trainers: each makes the steps of one definition in float64; the pages quote them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "trainers"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def shared():
    spec = importlib.util.spec_from_file_location("shared", FOLDER / "shared.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wanted():
    """KL(teacher‖student) before training and after each of three epochs, by formulas, text by text."""
    of = shared()
    student, teacher = (model.double() for model in of.models())

    def rows(texts):
        s, t = (torch.cat([model(ids[None])[0, :-1] for ids in texts]) for model in (student, teacher))
        return s, t, torch.cat([ids[1:] for ids in texts])

    def loss(s, t, y, temperature=2.0):
        p, log_q = (t / temperature).softmax(-1), (s / temperature).log_softmax(-1)
        soft = temperature**2 * (p * (p.log() - log_q)).sum(-1).mean()
        return 0.5 * soft - 0.5 * s.log_softmax(-1)[torch.arange(len(y)), y].mean()

    def kl():
        with torch.no_grad():
            s, t, _ = rows(of.texts())
            return (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean().item()

    found = [kl()]
    for _ in range(3):
        for begin, end in ((0, 12), (12, 24), (24, 32)):
            gradients = torch.autograd.grad(loss(*rows(of.texts()[begin:end])), list(student.parameters()))
            with torch.no_grad():
                for p, g in zip(student.parameters(), gradients, strict=True):
                    p -= g
        found.append(kl())
    return found


def printed(*command):
    """(name, numbers) of every line that the script prints of them."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=FOLDER,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line.split() for line in result.stdout.splitlines() if re.match(r"(kl|gkd|on-policy|grpo|cached) ", line)]
    return [(name, [float(x) for x in numbers]) for name, *numbers in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["with_lightning.py"],
        ["with_lightning.py", "2"],
        [*TORCHRUN, "2", "with_ddp.py"],
        [*TORCHRUN, "2", "with_fsdp2.py"],
        [*TORCHRUN, "2", "with_tensor_parallel.py"],
    ],
    ids=lambda command: " ".join(x for x in command if x.isdigit() or x.endswith(".py")),  # ranks and script
)
def test_steps_are_those_of_the_formula(command, wanted):
    if "with_lightning.py" in command:
        pytest.importorskip("lightning")
    found = [value for _, (value,) in printed(*command)]
    assert found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_trainers_of_trl_bring_the_student_closer():
    pytest.importorskip("trl")
    found = dict(printed("with_trl.py"))
    for name in ("gkd", "on-policy"):
        before, after = found[name]
        assert after < before, name
    assert 0.0 < found["grpo"][0] < 0.1


@pytest.mark.slow
def test_a_cached_teacher_brings_the_student_closer():
    pytest.importorskip("transformers")
    ((_, (before, after)),) = printed("with_cache.py")
    assert after < before


PAGES = [FOLDER.with_suffix(".md"), *sorted(FOLDER.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_quotes_its_scripts_as_they_are(page):
    scripts = "".join(path.read_text() for path in sorted(FOLDER.glob("*.py")))
    quoted = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert quoted
    for block in quoted:
        assert block in scripts, block
