"""`kullback compare --demo`: nothing is downloaded, and the roundings come out in their order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kullback.language.loading import load
from kullback.models import demo
from kullback.models.settings import Settings


def mean(candidate):
    return candidate["statistics"]["KL divergence statistics"][0]["value"]


def test_the_demo_compares_roundings_of_a_model_that_is_made_here(folders, tmp_path, monkeypatch):
    """The training is left out here."""

    def ready(out, **given):
        assert given["steps"] > 0
        Path(out).parent.mkdir(parents=True)
        Path(out).symlink_to(folders["reference"])
        return out

    monkeypatch.setattr(demo.small, "small_teacher", ready)
    shown = []
    found = demo.run(
        Settings(limit=600, noise=200, context=48), tmp_path / "run",
        lambda done, total, what: shown.append((done, total)), lambda *given: None,
    )  # fmt: skip
    assert found.plan.names == ["bfloat16", "int8", "int4"]
    assert 0.0 < mean(found["int8"]) < mean(found["int4"])
    assert mean(found["bfloat16"]) > 0.0
    assert shown == sorted(shown)
    assert {total for _, total in shown} == {1000}
    assert load(tmp_path / "run" / "models" / "bfloat16").model.dtype == torch.bfloat16
    assert found.measured == 600
    kept = json.loads((tmp_path / "run" / "results.json").read_text())
    assert kept["reference"]["name"] == "reference"
    assert all(
        "/" not in w["name"] or (tmp_path / "run" / "text" / w["name"]).is_file() for w in found["int4"]["worst"]
    )


def test_the_head_is_not_rounded(folders):
    model = load(folders["reference"]).model
    made = demo.rounded(model, 4, 32)
    assert torch.equal(made.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert torch.equal(made.get_input_embeddings().weight, model.get_input_embeddings().weight)
    layer = lambda m: m.model.layers[0].mlp.up_proj.weight  # noqa: E731
    assert torch.equal(layer(made), demo.round_weight(layer(model), 4, 32))
    assert not torch.equal(layer(made), layer(model))


@pytest.mark.slow
def test_the_whole_demo_takes_under_four_minutes_of_cpu(tmp_path):
    """Two minutes on two cores."""
    start = os.times()
    made = subprocess.run(
        [sys.executable, "-m", "kullback.cli", "compare", "--demo", "--out", "run", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    end = os.times()
    assert made.returncode == 0, made.stderr
    assert (end.children_user + end.children_system) - (start.children_user + start.children_system) < 240
    document = json.loads(made.stdout)
    candidates = {each["name"]: each for each in document["candidates"]}
    assert mean(candidates["int8"]) < mean(candidates["bfloat16"]) < mean(candidates["int4"])
    assert mean(document["noise_floor"][0]) < 1e-9
    assert (tmp_path / "run" / "report.html").stat().st_size < 500_000
