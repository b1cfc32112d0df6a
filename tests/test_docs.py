"""The documents: every example runs as printed, every number of the lessons is computed, every link leads somewhere."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = [ROOT / name for name in ("README.md", "CONVENTIONS.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*(page for page in TOP if page.exists()), *sorted((ROOT / "docs").rglob("*.md"))]
LESSONS = [page for page in PAGES if page.is_relative_to(ROOT / "docs" / "learn")]
IMAGES = ROOT / "docs" / "images"

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[^\n]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:img|source)[^>]*\s(?:src|srcset)=\"([^\"]+)\"")
NUMBER = re.compile(r"(?<![\w.])-?\d*\.\d+(?:e[-+]?\d+)?(?![\w]|\.\d)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blank(text: str) -> str:
    return "\n" * text.count("\n")


def python_only(text: str) -> str:
    """The page with everything but its Python blocks blanked out; lines keep their numbers."""
    kept, end = [], 0
    for fence in FENCE.finditer(text):
        kept.append(blank(text[end : fence.start()]))
        kept.append("\n" + fence[2] if fence[1] in ("python", "pycon") else blank(fence[0]))
        end = fence.end()
    return "".join(kept) + blank(text[end:])


def prose_of(text: str) -> str:
    """The page without code, in blocks or in line, and without the addresses of its links."""
    text = re.sub(r"`[^`]*`", "", FENCE.sub("", text))
    return re.sub(r"\]\([^)]*\)|https?://\S+|arXiv[: ]\S+", "", text)


def run(page: Path) -> list[str]:
    """Run the examples of a page in one namespace that starts empty; what failed."""
    source = python_only(page.read_text(encoding="utf-8"))
    test = doctest.DocTestParser().get_doctest(source, {"__name__": "__main__"}, name_of(page), str(page), 0)
    failures: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF
    doctest.DocTestRunner(optionflags=options, verbose=False).run(test, out=failures.append)
    return failures


def uncomputed(text: str) -> list[str]:
    """Numbers with a decimal point in the prose that no example holds or prints, to the digits that are quoted."""
    known = [float(number) for number in NUMBER.findall(python_only(text))]

    def computed(quoted: str) -> bool:
        digits = len(quoted.partition(".")[2])
        return any(abs(abs(value) - abs(float(quoted))) <= 0.5000001 * 10.0**-digits for value in known)

    return [quoted for quoted in NUMBER.findall(prose_of(text)) if "e" in quoted or not computed(quoted)]


def broken_links(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [first or second for first, second in LINK.findall(text)]
    return [link for link in found if "://" not in link and not leads_somewhere(page, *link.partition("#")[::2])]


def leads_somewhere(page: Path, path: str, heading: str) -> bool:
    target = page.parent / path if path else page
    if not heading or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
    return heading in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_run_as_printed(page):
    failures = run(page)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_is_an_example_with_its_output(page):
    blocks = [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language == "python"]
    assert [body for body in blocks if not body.lstrip().startswith(">>>")] == []


@pytest.mark.parametrize("page", LESSONS, ids=name_of)
def test_numbers_in_the_prose_are_computed_on_the_page(page):
    assert uncomputed(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    assert broken_links(page) == []


def test_lessons_are_there_and_every_picture_is_shown():
    assert len(LESSONS) >= 6
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [image.name for image in sorted(IMAGES.glob("*.svg")) if image.name not in text] == []


CHEATSHEET = ROOT / "docs" / "cheatsheet.md"


def cells(text: str) -> list[str]:
    """What the last column of every table says to write."""
    rows = [line.strip("| ") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])]


def test_every_row_of_the_cheatsheet_runs():
    text = CHEATSHEET.read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__main__"}
    for example in doctest.DocTestParser().get_examples(python_only(text)):
        exec(compile(example.source, "cheatsheet", "single"), names)
    written = [code for code in cells(text) if not code.startswith("kullback ")]
    assert len(written) > 25
    for code in written:
        assert eval(code, names) is not None, code


def test_every_command_of_the_cheatsheet_runs(tmp_path, monkeypatch):
    pytest.importorskip("typer")
    pytest.importorskip("matplotlib")
    import shlex

    import numpy as np
    from typer.testing import CliRunner

    from kullback.cli import app

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in "ab":
        np.savetxt(f"{name}.csv", random.normal(size=(100, 2)), delimiter=",", header="x,y", comments="")
    Path("p.csv").write_text("k,count\nu,30\nv,50\nw,20\n")
    Path("q.csv").write_text("k,count\nu,35\nv,40\nw,25\n")
    for name in "st":
        np.save(f"{name}.npy", random.normal(size=(9, 4)))
    commands = [code for code in cells(CHEATSHEET.read_text(encoding="utf-8")) if code.startswith("kullback ")]
    assert len(commands) > 5
    for command in commands:
        found = CliRunner().invoke(app(), shlex.split(command)[1:])
        assert found.exit_code == 0, (command, found.output)


def test_the_checks_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\nIt costs 0.27 or 0.28: [x](gone.md), [y](#gone), [z](#here).\n\n```python\n>>> 0.2685\n0.2685\n```\n"
    )
    assert uncomputed(page.read_text()) == ["0.28"]
    assert broken_links(page) == ["gone.md", "#gone"]


def test_the_figures_are_made_by_the_committed_script_and_are_the_same_twice(tmp_path):
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "learn" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    first, second = tmp_path / "first", tmp_path / "second"
    made = figures.draw_all(first)
    assert made == figures.draw_all(second)
    for name in made:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (IMAGES / name).exists()
