"""The command: what is printed, exit codes, excuses, formats, fixes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kullback import cli
from kullback.check import RULES, check_source, chosen, fixed

BAD = "import torch\nimport torch.nn.functional as F\n\nloss = F.kl_div(torch.softmax(x, dim=-1), p)\n"
GOOD = "import torch\n\nx = torch.zeros(2)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / ".hidden").mkdir()
    (tmp_path / "package" / "inner" / "bad.py").write_text(BAD)
    (tmp_path / "package" / "good.py").write_text(GOOD)
    (tmp_path / "package" / ".hidden" / "bad.py").write_text(BAD)
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(cli.app(), ["check", *arguments])


def test_findings_stand_with_file_line_and_column_and_the_exit_code_is_1(folder):
    result = call("package")
    assert result.exit_code == 1
    first, second, last = result.stdout.splitlines()
    assert first.startswith("package/inner/bad.py:4:8: KLB001 ")
    assert second.startswith("package/inner/bad.py:4:17: KLB003 ")
    assert last == "2 findings in 2 files; --fix mends 1"


def test_nothing_found_is_exit_code_0(folder):
    result = call("package/good.py")
    assert (result.exit_code, result.stdout) == (0, "no findings in 1 file\n")


def test_what_cannot_be_read_is_exit_code_2_and_the_rest_is_checked(folder):
    (folder / "package" / "broken.py").write_text("def f(:\n")
    (folder / "package" / "latin.py").write_bytes(b"# -*- coding: utf-8 -*-\nx = '\xe9'\n")
    result = call("package", "nowhere")
    assert result.exit_code == 2
    assert "KLB003" in result.stdout
    assert "package/broken.py:1: is no Python" in result.stderr
    assert "package/latin.py: cannot be read" in result.stderr
    assert "nowhere: No such file or directory" in result.stderr
    assert result.stderr.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to check"),
        (["--select", "KLB999", "."], "there is no rule 'KLB999'"),
        (["--explain", "E501"], "there is no rule 'E501'"),
        (["--fix", "--diff", "."], "write one of them"),
        (["--fix", "--json", "."], "write one of them"),
        (["--sarif", "a.txt", "."], "its name must end in .sarif or .json"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(folder, arguments, message):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_select_and_ignore_take_beginnings_of_codes(folder):
    assert call("package", "--select", "KLB003").stdout.splitlines()[-1].startswith("1 finding in 2 files")
    assert call("package", "--ignore", "klb001,KLB003").exit_code == 0
    assert [rule.code for rule in chosen(["KLB01"], ["KLB014"])] == ["KLB010", "KLB011", "KLB012", "KLB013"]


def test_no_rule_left_finds_nothing(folder):
    assert call("package", "--select", "KLB003", "--ignore", "KLB003").exit_code == 0


def test_json_is_one_document(folder):
    document = json.loads(call("package", "--json").stdout)
    assert document["files"] == 2
    one = document["findings"][1]
    assert (one["code"], one["line"], one["column"]) == ("KLB003", 4, 17)
    assert (one["end_line"], one["end_column"]) == (4, 41)
    assert BAD.splitlines()[3][16:40] == "torch.softmax(x, dim=-1)"
    assert one["fixable"]
    assert one["link"].endswith("docs/check.md#klb003-input-without-logarithm")


def test_columns_count_characters(folder):
    text = "import torch\nx = 'äöü‖😀'; y = torch.log(torch.softmax(x, -1))\n"
    (one,) = check_source(text)
    assert text.splitlines()[1][one.column - 1 : one.end_column - 1] == "torch.log(torch.softmax(x, -1))"
    assert fixed(text) == "import torch\nx = 'äöü‖😀'; y = torch.log_softmax(x, -1)\n"


def test_sarif_keeps_the_standard(folder):
    models = pytest.importorskip("sarif_pydantic")
    (folder / "a b.py").write_text(BAD)
    assert call("package", "a b.py", "--sarif", "out.sarif").exit_code == 1
    raw = json.loads((folder / "out.sarif").read_text())
    log = models.Sarif.model_validate(raw, strict=False)
    assert (raw["version"], raw["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    run = log.runs[0]
    assert [rule.id for rule in run.tool.driver.rules] == list(RULES)
    assert [result.rule_id for result in run.results] == ["KLB001", "KLB003"] * 2
    assert all(RULES[each.rule_id] is list(RULES.values())[each.rule_index] for each in run.results)
    place = run.results[-1].locations[0].physical_location
    assert place.artifact_location.uri == "a%20b.py"
    assert (place.region.start_line, place.region.start_column, place.region.end_column) == (4, 17, 41)
    described = raw["runs"][0]["tool"]["driver"]["rules"][2]
    assert described["help"]["text"].startswith("KLB003: input without logarithm")
    assert raw["runs"][0]["invocations"][0]["executionSuccessful"] is True


@pytest.mark.parametrize(
    ("comment", "codes"),
    [
        ("# noqa", []),
        ("# noqa: KLB001, KLB003", []),
        ("# NOQA:KLB003", ["KLB001"]),
        ("# noqa: E501 KLB001", ["KLB003"]),
        ("# noqa: E501", ["KLB001", "KLB003"]),
        ("# quite right", ["KLB001", "KLB003"]),
    ],
)
def test_noqa_excuses_the_codes_it_names(comment, codes):
    assert [one.code for one in check_source(BAD.rstrip("\n") + f"  {comment}\n")] == codes


def test_noqa_in_a_string_excuses_nothing_and_on_any_line_of_a_call_it_does():
    assert check_source('import torch\nx = torch.nn.KLDivLoss(); y = "# noqa"\n')
    assert not check_source("import torch\nx = torch.nn.KLDivLoss(\n    # noqa: KLB001\n)\n")


@pytest.mark.parametrize("code", RULES)
def test_every_rule_is_explained_with_a_link_to_its_section(code):
    result = call("--explain", code)
    assert result.exit_code == 0
    rule = RULES[code]
    assert result.stdout.startswith(f"{code}: {rule.name}\n")
    assert rule.link in result.stdout
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    heading = f"### {code} {rule.name}\n"
    assert heading in page
    assert heading[4:].strip().lower().replace(" ", "-") == rule.link.partition("#")[2]


FIXES = {
    "KLB003": ("F.kl_div(F.softmax(x, -1), p, reduction='sum')", "F.kl_div(F.log_softmax(x, -1), p, reduction='sum')"),
    "KLB003 method": ("F.kl_div(x.softmax(-1), p, reduction='sum')", "F.kl_div(x.log_softmax(-1), p, reduction='sum')"),
    "KLB004": (
        "F.kl_div(q, F.log_softmax(x, -1), reduction='sum')",
        "F.kl_div(q, F.log_softmax(x, -1), reduction='sum', log_target=True)",
    ),
    "KLB004 said": (
        "F.kl_div(q, F.log_softmax(x, -1), log_target=False, reduction='sum')",
        "F.kl_div(q, F.log_softmax(x, -1), log_target=True, reduction='sum')",
    ),
    "KLB008": ("torch.log(F.softmax(x, -1) + 1e-8)", "F.log_softmax(x, -1)"),
    "KLB008 clamp": ("F.softmax(x, -1).clamp(min=1e-8).log()", "F.log_softmax(x, -1)"),
    "KLB009": ("torch.log(torch.softmax(x / T, dim=1))", "torch.log_softmax(x / T, dim=1)"),
    "KLB009 in KLB003's place": (
        "F.kl_div(x.softmax(dim=1).log(), y.softmax(1).log(), reduction='sum')",
        "F.kl_div(x.log_softmax(dim=1), y.log_softmax(1), reduction='sum', log_target=True)",
    ),
    "KLB004 over KLB009": (
        "F.kl_div(q, y.softmax(1).log(), reduction=r)",
        "F.kl_div(q, y.log_softmax(1), reduction=r, log_target=True)",
    ),
    "KLB004 at the place of KLB009": (
        "F.kl_div(q, y.softmax(1).log())",
        "F.kl_div(q, y.log_softmax(1), log_target=True)",
    ),
    "KLB009 in KLB009": (
        "torch.log(torch.softmax(torch.log(torch.softmax(x, -1)), -1))",
        "torch.log_softmax(torch.log_softmax(x, -1), -1)",
    ),
    "KLB011": ("F.kl_div(q, p, size_average=False)", 'F.kl_div(q, p, reduction="sum")'),
    "KLB011 reduce": ("F.kl_div(q, p, reduce=False)", 'F.kl_div(q, p, reduction="none")'),
    "KLB014": ("js_divergence = jensenshannon(p, q)", "js_divergence = jensenshannon(p, q) ** 2"),
}
HEAD = "import torch, torch.nn.functional as F\nfrom scipy.spatial.distance import jensenshannon\n"


@pytest.mark.parametrize("name", FIXES)
def test_fixes(name):
    before, after = FIXES[name]
    assert fixed(HEAD + before + "\n") == HEAD + after + "\n"
    assert fixed(HEAD + after + "\n") == HEAD + after + "\n"


def test_every_rule_that_says_it_fixes_does():
    assert {name.partition(" ")[0] for name in FIXES} == {code for code, rule in RULES.items() if rule.fixes}


def test_fixed_calls_of_pytorch_have_the_values_of_kullback():
    import torch
    import torch.nn.functional as F  # noqa: N812

    from kullback import Logits, kl

    names = {"torch": torch, "F": F, "x": torch.randn(4, 7), "y": torch.randn(4, 7)}
    for line in (
        "F.kl_div(x.softmax(dim=1), y.softmax(1), reduction='sum')",
        "F.kl_div(x.softmax(dim=1).log(), y.log_softmax(1), reduction='sum')",
    ):
        mended = fixed(HEAD + line + "\n").removeprefix(HEAD)
        torch.testing.assert_close(eval(mended, names), kl(Logits(names["y"]), Logits(names["x"])).sum())


def test_diff_shows_and_fix_writes(folder):
    path = folder / "package" / "inner" / "bad.py"
    path.chmod(0o755)
    shown = call("package", "--diff")
    assert shown.exit_code == 1
    assert (
        "-loss = F.kl_div(torch.softmax(x, dim=-1), p)\n+loss = F.kl_div(torch.log_softmax(x, dim=-1), p)"
        in shown.stdout
    )
    assert path.read_text() == BAD
    done = call("package", "--fix")
    assert done.stdout.startswith("--- a/package/inner/bad.py\n+++ b/package/inner/bad.py\n")
    assert done.stdout.splitlines()[-1] == "1 finding in 2 files"
    assert done.exit_code == 1
    assert path.read_text() == BAD.replace("torch.softmax", "torch.log_softmax")
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_line_ends_and_encodings_are_kept(folder):
    path = folder / "dos.py"
    before = "# coding: latin-1\r\nimport torch\r\n# é\r\nx = torch.log(torch.softmax(y, -1))\r\n".encode("latin-1")
    path.write_bytes(before)
    assert call("dos.py", "--fix").exit_code == 0
    assert path.read_bytes() == before.replace(b"torch.log(torch.softmax(y, -1))", b"torch.log_softmax(y, -1)")


def test_a_hook_for_pre_commit_calls_the_command():
    text = (Path(__file__).parents[2] / ".pre-commit-hooks.yaml").read_text()
    assert "entry: kullback check\n" in text
    assert "id: kullback-check\n" in text
    assert "types_or: [python, pyi]\n" in text


def test_nothing_of_a_file_is_run(folder):
    (folder / "evil.py").write_text("import torch\nopen('ran', 'w')\nraise SystemExit(9)\ntorch.nn.KLDivLoss()\n")
    done = subprocess.run([sys.executable, "-m", "kullback.cli", "check", "evil.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert not (folder / "ran").exists()


def test_the_page_is_made_from_the_table():
    import importlib.util

    spec = importlib.util.spec_from_file_location("page", Path(__file__).parents[2] / "docs" / "check.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.with_rules(text), "run python docs/check.py"
