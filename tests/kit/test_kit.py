"""What the commands share: endings, files, numbers, the terminal, pictures, pages, progress."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from datetime import datetime

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from kullback._errors import BadInput, MissingExtra
from kullback.kit import files, page, pictures, progress
from kullback.kit.ending import ending, stoppable
from kullback.kit.extras import extra
from kullback.kit.numbers import Summary


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, **environment}
    )


# endings


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadInput("a.csv: is\n  bad"), 2, "kullback x: a.csv: is bad\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.svg"),
            2,
            "kullback x: out.svg: No space left on device\n",
        ),
        (MemoryError(), 2, "kullback x: out of memory; give it less data\n"),
        (KeyboardInterrupt(), 130, "kullback x: interrupted\n"),
    ],
)
def test_a_command_ends_with_one_line(error, code, line, capsys):
    with pytest.raises(SystemExit) as ended, ending("kullback x"):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_is_not_hidden_by_the_ending():
    with pytest.raises(ZeroDivisionError), ending("kullback x"):
        raise ZeroDivisionError


def test_a_reader_that_has_gone_is_not_bad_input():
    with pytest.raises(BrokenPipeError), ending("kullback x"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_sigterm_ends_as_ctrl_c_does_and_the_handler_is_given_back():
    before = signal.getsignal(signal.SIGTERM)

    def stopped():
        with stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_missing_package_names_its_extra_and_what_works_in_a_checkout():
    with pytest.raises(MissingExtra) as caught:
        extra("no_such_package.part", of="recipes")
    text = str(caught.value)
    assert text.startswith("the package 'no_such_package' is not installed; write: pip install 'kullback[recipes]'")
    assert f"{sys.executable} -m pip install -e '" in text  # the tests run in a checkout


# files


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    files.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"

    def full(self, other):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(type(target), "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"):
        files.write_bytes(target, b"newer")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_run_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 1, 2, 3, 4, 5)
    assert files.new_folder(None, now, "job").name == "job-20260102-030405"
    assert files.new_folder(None, now, "job").name == "job-20260102-030405-2"
    (tmp_path / "job-20260102-030405" / "mine").touch()
    with pytest.raises(BadInput, match="not empty; nothing was overwritten"):
        files.new_folder(tmp_path / "job-20260102-030405", now, "job")


def test_json_is_strict():
    document = json.loads(files.dump_json({"a": (math.inf, -math.inf, math.nan, 1.5), "b": {"c": "é"}}))
    assert document == {"a": ["inf", "-inf", "nan", 1.5], "b": {"c": "é"}}


# numbers and the terminal


def test_a_summary_of_one_value_has_no_error_and_never_prints_nan():
    assert Summary.of([2.0]).text(".1f") == "2.0"
    assert Summary.of([math.nan, 1.0]).text(".1f") == "-"
    assert Summary.of([1.0, 2.0, 6.0]).stderr == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_with_ascii_only_gets_the_words(stream):
    code = (
        "import sys; from kullback.kit.terminal import spell_out; spell_out();"
        f"print('KL(P‖Q) = ∞ ± ½, é, Ω, 😀', file=sys.{stream})"
    )
    done = python(code, PYTHONIOENCODING="ascii")
    assert (done.stdout + done.stderr).decode() == "KL(P||Q) = inf +/- 1/2 , e, \\u03a9, \\ud83d\\ude00\n"
    kept = python(code, PYTHONIOENCODING="utf-8")
    assert "KL(P‖Q) = ∞ ± ½" in (kept.stdout + kept.stderr).decode()


# pictures


def luminance(colour: str) -> float:
    """Relative luminance. Source: WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
@pytest.mark.parametrize("name", ["INK", "BLUE", "ORANGE", "GREEN", "PURPLE", "PINK"])
def test_colours_stand_out_on_light_and_on_dark_ground(name, ground):
    low, high = sorted((luminance(getattr(pictures, name)), luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= (4.3 if name == "INK" else 3.0)


@pytest.mark.parametrize("name", ["$5 % $9", r"$\frac{$", "a\x01b", "--", "<b>&", "漢字", "_hidden"])
def test_names_in_a_picture_are_text(name):
    def draw(axes):
        axes.bar([0, 1], [1, 2], label=pictures.short(name, 40))
        axes.set_title(pictures.short(name))
        axes.set_xticks([0, 1], [pictures.short(name)] * 2)
        axes.legend()

    svg = pictures.chart(draw, size=(4, 3), of="distill")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    if name in ("$5 % $9", "漢字"):
        assert f"<!-- {name} -->" in svg  # matplotlib writes each text as a comment beside its outlines


def test_powers_on_logarithmic_axes_are_no_formulas():
    svg = pictures.chart(lambda axes: axes.loglog([1e-8, 1.0], [0.1, 1e6]), size=(4, 3), of="distill")
    assert "mathdefault" not in svg
    assert "<!-- 10⁻⁸ -->" in svg


def test_the_ground_is_clear_and_the_bytes_repeat():
    def draw(figure):
        figure.subplots().plot([0, 1], [0, 1])

    first, second = (pictures.drawn(draw, size=(3, 2), of="distill") for _ in range(2))
    assert first == second
    ground = ElementTree.fromstring(first).find(".//{*}g[@id='patch_1']/{*}path")
    assert "fill: none" in ground.attrib["style"]
    assert pictures.drawn(draw, size=(3, 2), of="distill", form="png")[25] == 6  # colour with alpha


# the page


def test_a_page_escapes_names_scrolls_its_tables_and_draws_ink_in_its_own_colour(tmp_path, monkeypatch):
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    (tmp_path / "some_package" / "it.html.j2").write_text(
        '{% extends "page.html.j2" %}{% block title %}{{ name }}{% endblock %}'
        '{% block body %}{{ scrolling(rows, "who") }}{{ picture(svg, name) }}{% endblock %}'
    )
    monkeypatch.syspath_prepend(tmp_path)
    svg = f'<?xml version="1.0"?><svg width="1"><metadata>m</metadata><g style="fill: {pictures.INK}"/></svg>'
    html = page.render(
        "some_package", "it.html.j2", of="distill", name='<a"b>', rows=[["", "x"], ["$1", "<2>"]], svg=svg
    )
    assert html.startswith("<!doctype html>")
    assert "<title>&lt;a&#34;b&gt;</title>" in html
    assert '<th scope="col">who</th><th scope="col">x</th>' in html.replace("\n", "")
    assert "&lt;2&gt;" in html
    assert 'aria-label="&lt;a&#34;b&gt;"' in html
    assert "fill: currentColor" in html
    assert "<metadata>" not in html
    assert ".scroll { overflow-x: auto; }" in html
    assert "prefers-color-scheme: dark" in html
    assert "src=" not in html
    assert "href=" not in html


# progress


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capfd):
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress.progress("kullback x", of="distill") as job:
        job.show(1, 4, "the teacher")
        time.sleep(0.5)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("kullback x: 25 %, the teacher; ") for line in lines)


def test_a_short_job_says_nothing(capfd):
    with progress.progress("kullback x", 3, of="distill") as job:
        job.one()
    assert capfd.readouterr() == ("", "")
    assert job.done == 1


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (None, "job: 0 s so far"),
        ((0, 0, "reading"), "job: reading; 0 s so far"),
        ((0, 4, ""), "job: 0 %; 0 s so far"),
        ((1, 4, "half"), "job: 25 %, half; 0 s so far, about 0 s to go"),
    ],
)
def test_a_line_says_what_is_known_and_no_more(shown, line):
    job = progress.Progress("job")
    if shown is not None:
        job.show(*shown)
    assert job.line() == line


def test_what_is_left_is_reckoned_from_what_is_done(monkeypatch):
    job = progress.Progress("job", 10)
    job.show(4, 10)
    begun = job._start
    monkeypatch.setattr(progress.time, "monotonic", lambda: begun + 200.0)
    assert job.line() == "job: 40 %; 3 min so far, about 5 min to go"


def test_a_terminal_gets_a_bar():
    pty = pytest.importorskip("pty")
    code = (
        "from kullback.kit.progress import progress\nimport time\n"
        "with progress('job', of='distill') as job:\n"
        "    job.show(1, 2, 'half [red]way'); time.sleep(0.5)\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    assert done.wait(60) == 0
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "half [red]way" in shown
    assert "50 %" in shown
