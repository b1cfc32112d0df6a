"""Every recipe for a few steps: the loss falls, the comparison is computed, the picture is written."""

import inspect
import json
import math

import pytest
import torch

typer = pytest.importorskip("typer")
for package in ("gymnasium", "matplotlib", "rich", "sklearn", "statsmodels"):
    pytest.importorskip(package)

from typer.testing import CliRunner  # noqa: E402

from kullback._errors import MissingExtra  # noqa: E402
from kullback.kit import extras, progress  # noqa: E402
from kullback.recipes import NAMES, command, shared  # noqa: E402

FEW = {
    "seq2seq_label_smoothing": {"steps": 30},
    "uda_text": {"steps": 40},
    "vae_digits": {"steps": 120},
    "two_modes": {"steps": 60},
    "ppo_cartpole": {"steps": 6},
    "rdrop": {"steps": 60},
    "fgan": {"steps": 600},
    "calibrated_recommendation": {"steps": 40},
    "anomaly": {"steps": 60},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps(name, tmp_path):
    state = torch.get_rng_state()
    picture = tmp_path / "picture.svg"
    result = command.run_recipe(name, seeds=1, out=picture, **FEW[name])
    assert torch.equal(torch.get_rng_state(), state), "a recipe moves the global random state"
    assert result.recipe == name
    for method, losses in result.curves.items():
        if (name, method) == ("fgan", "KL"):  # the page says so: this game does not settle
            continue
        part = max(1, len(losses) // 4)
        assert sum(losses[-part:]) < sum(losses[:part]), f"the loss of {method} does not fall"
    mean = result.difference.mean
    assert math.isfinite(mean)
    assert result.difference.stderr is None  # one seed has none
    column, ours, baseline = result.compare
    assert f"{ours} less {baseline}" in result.headline
    assert mean == pytest.approx(result.rows[ours][0][column] - result.rows[baseline][0][column])
    assert picture.read_text().startswith("<?xml")
    json.dumps(result.to_json(), allow_nan=False)


def test_a_recipe_without_a_terminal_says_how_far_it_is(monkeypatch, capfd):
    monkeypatch.setattr(progress, "FIRST", 0.02)
    monkeypatch.setattr(progress, "EVERY", 0.02)
    command.run_recipe("two_modes", seeds=1, steps=60, out=None)
    lines = [line for line in capfd.readouterr().err.splitlines() if "two_modes" in line]
    shares = [int(line.split(":")[2].split("%")[0]) for line in lines if "%" in line]
    assert len(shares) >= 2
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] <= 100
    assert all(line.startswith("kullback recipes: two_modes: ") and " so far" in line for line in lines)


def test_every_recipe_says_what_it_is_and_takes_the_same_arguments():
    lines = command.describe()
    assert list(lines) == list(NAMES) == list(FEW)
    for name in NAMES:
        module = command._module(name)
        assert len(lines[name]) < 120
        for word in ("Source:", "Data:", "Expect:"):
            assert word in module.__doc__, (name, word)
        defaults = inspect.signature(module.run).parameters
        assert list(defaults)[:3] == ["seeds", "steps", "out"]
        assert defaults["seeds"].default >= 3


def invoke(*words):
    return CliRunner().invoke(command.recipes, list(words))


def test_the_list():
    found = invoke()
    assert found.exit_code == 0
    assert all(f"\n{name} " in "\n" + found.stdout for name in NAMES)
    assert list(json.loads(invoke("--json").stdout)) == list(NAMES)


def test_a_run_from_the_command_line(tmp_path):
    picture = tmp_path / "modes.png"
    found = invoke("run", "two_modes", "--steps", "3", "--seeds", "2", "--out", str(picture), "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["settings"] == {"seeds": 2, "steps": 3}
    assert told["picture"] == str(picture)
    assert len(told["per_seed"]["forward KL"]) == 2
    assert picture.stat().st_size > 1000
    table = invoke("run", "two_modes", "--steps", "3", "--seeds", "2", "--out", str(picture))
    assert "reverse KL less forward KL" in table.stdout
    assert "±" in table.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "two_mode"), "did you mean 'two_modes'?"),
        (("run", "nothing_like_it"), "there is no recipe 'nothing_like_it'"),
        (("run", "two_modes", "--steps", "0"), "--steps is 0"),
        (("run", "two_modes", "--seeds", "-1"), "--seeds is -1"),
        (("run", "two_modes", "--out", "a.txt"), "must end in .svg"),
        (("run", "two_modes", "--out", "no/such/folder/a.svg"), "there is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, told):
    found = invoke(*words)
    assert found.exit_code == 2
    assert told in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_missing_package_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"'sklearn' is not installed; write: pip install 'kullback\[recipes\]'"):
        shared.extra("sklearn.datasets")


def test_differences_are_paired_by_seed():
    rows = {"ours": [{"x": 1.0}, {"x": 5.0}], "baseline": [{"x": 0.0}, {"x": 4.0}]}
    result = shared.Result("r", "d", {}, {"x": ".1f"}, rows, ("x", "ours", "baseline"))
    assert (result.difference.mean, result.difference.stderr) == (1.0, 0.0)
    assert (result.mean("ours", "x").mean, result.mean("ours", "x").stderr) == pytest.approx((3.0, 2.0))
    assert result.headline == "x: ours less baseline = +1.0 ± 0.0 (paired, seeds: 2)"
