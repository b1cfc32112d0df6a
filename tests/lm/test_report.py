"""report.html of a distilled language model: what it says, and what a browser makes of it."""

import json
import random
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from kullback.lm.distill import report

ARMS = ("from the teacher", "from labels alone")
TEXT = "the of and to in is a returns value object list string file name when each all"
WORDS = TEXT.split()
HOSTILE = ["<script>hurt = 1</script>", "\n    ", "⟨E2⟩⟨80⟩", "\u202e"]


def number(value, stderr, **more):
    return {"value": value, "stderr": stderr, "low": value - 2 * stderr, "high": value + 2 * stderr, **more}


def example(title, count, seed):
    drawn = random.Random(seed)
    pieces = [drawn.choice([f" {word}" for word in WORDS]) for _ in range(count)]
    pieces[3 : 3 + len(HOSTILE)] = HOSTILE

    def side():
        choices = [[[drawn.choice(WORDS), 0.5], [" <b>", 0.25], ["\n", 0.0001]] for _ in pieces[1:]]
        return {"came": [None, *(round(drawn.random(), 5) for _ in pieces[1:])], "choices": [None, *choices]}

    students = {
        arm: {"kl": [None, *(drawn.expovariate(2.0 - i) for _ in pieces[1:])], **side()} for i, arm in enumerate(ARMS)
    }
    return {"title": title, "pieces": pieces, "teacher": side(), "students": students}


def results():
    """As the job's results.json, with numbers drawn."""
    kl, perplexity = (0.31, 0.52), (41.0, 47.5)
    students = [
        {
            "name": arm,
            "seeds": [0, 1],
            "parameters": 200_000,
            "steps": 600,
            "seconds": 61.0,
            "curves": [
                [
                    {
                        "step": s,
                        "tokens": 2000 * s,
                        "loss": 3.7 + 3 / s**0.5 + 0.1 * i,
                        "kl": kl[i] + 2 / s**0.5 + 0.01 * k,
                        "train_loss": None if s == 60 else 4.0,
                    }
                    for s in range(60, 601, 60)
                ]
                for k in range(2)
            ],
            "perplexity": number(perplexity[i], 1.1, by_seed=[41.0, 41.2], stderr_over_seeds=0.1),
            "kl": number(kl[i], 0.012, by_seed=[0.3, 0.32], stderr_over_seeds=0.01),
            "same_top": number(0.71, 0.004, by_seed=[0.7, 0.72], stderr_over_seeds=0.01),
        }
        for i, arm in enumerate(ARMS)
    ]
    return {
        "status": "complete",
        "started": "2026-11-22T00:10:11+00:00",
        "seconds": 171.0,
        "level": 0.95,
        "seeds": [0, 1],
        "settings": {
            "divergence": "kl",
            "temperature": 1.0,
            "soft_weight": 0.9,
            "teacher": None,
            "steps": 600,
            "out": "<i>",
        },
        "notes": ["Both kinds of student: same <b>network</b>."],
        "data": {
            "source": "documentation strings",
            "documents": 200,
            "train_tokens": 300_000,
            "held_out_tokens": 30_000,
            "vocabulary": 2048,
        },
        "teacher": {
            "name": "small teacher",
            "parameters": 1_400_000,
            "trained_steps": 300,
            "perplexity": number(33.0, 0.9),
        },
        "students": students,
        "difference": {
            "kl": number(-0.21, 0.009, by_seed=[-0.2, -0.22], stderr_over_seeds=0.01),
            "perplexity_ratio": number(0.863, 0.01),
        },
        "examples": [example(f"module_{k}", 150, k) for k in range(3)],
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "report.html"
    path.write_text(report.render(results()), encoding="utf-8")
    return path


@pytest.fixture
def tab(chromium, page, request):
    """The page in a browser; what the console says fails the test."""
    width, scheme = getattr(request, "param", (1280, "light"))
    said, tab = [], chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    tab.close()
    assert said == []


def test_the_page_is_one_small_file(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    assert not re.search(r"\bsrc=|@import|<link|\bnan\b|Undefined", text)
    assert text.count("<svg") == text.count('<svg role="img" aria-label=') == 2


def test_the_verdict_says_how_much_nearer_and_how_sure():
    said = report.verdict(results())
    assert "0.310 ± 0.012 nats a token from the teacher, the one from labels alone 0.520 ± 0.012" in said
    assert "a difference of -0.2100 ± 0.0090 (95 %: -0.228 to -0.192)." in said
    assert "Seed by seed the difference is -0.200, -0.220, on average ± 0.010 over seeds." in said
    assert said.endswith("Its perplexity is 13.7 % lower (95 %: ratio 0.843 to 0.883).")
    unsure = results()
    unsure["difference"]["perplexity_ratio"] = number(1.01, 0.02)
    assert report.verdict(unsure).endswith("1.0 % higher (95 %: ratio 0.970 to 1.05), which may be chance.")


def test_the_table_has_both_students_and_the_teacher():
    rows = report.table_rows(results())
    assert [row[0] for row in rows] == ["", *ARMS, "the teacher"]
    assert {len(row) for row in rows} == {9}
    assert rows[1][1:6] == ["0.310 ± 0.012", "0.286 … 0.334", "0.010", "41.0 ± 1.1", "71.00 ± 0.40"]
    assert rows[3][4] == "33.00 ± 0.90"


def test_one_student_or_one_document_leaves_dashes():
    """A single held-out document has no error by document; one kind of student no difference."""
    found = json.loads(json.dumps(results()))
    del found["students"][1]
    found["difference"] = None
    for key in ("kl", "perplexity", "same_top"):
        found["students"][0][key] |= {"stderr": None, "low": None, "high": None, "stderr_over_seeds": None}
    found["examples"] = []
    text = report.render(found)
    assert "There are no two students to compare." in text
    assert 'class="passage"' not in text
    assert not re.search(r"\bnan\b", text)
    assert report.table_rows(found)[1][1:4] == ["0.310", "–", "–"]


def test_a_curve_that_is_not_finite_somewhere_is_drawn_where_it_is():
    found = results()
    found["students"][0]["curves"][0][0] |= {"loss": None, "kl": None}
    found["students"][1]["curves"] = [[point | {"kl": None} for point in found["students"][1]["curves"][0]]]
    assert report.render(found).count("<svg") == 2


def test_the_table_sorts(tab):
    table = tab.locator("table.sortable")
    table.get_by_role("button", name="perplexity").click()
    assert table.locator("tbody th").all_inner_texts() == ["the teacher", *ARMS]


def test_a_token_shows_what_teacher_and_student_held_likely(tab):
    given = results()["examples"][1]
    i = 20
    piece = tab.locator(".passage").nth(1).locator(".t").nth(i)
    box = tab.locator("#passages-box")
    for arm in ARMS:
        tab.get_by_role("radio", name=arm).check()
        piece.hover()
        text = box.inner_text()
        assert f"KL {report.significant(given['students'][arm]['kl'][i])}" in text
        heads = [box.locator(".who").nth(k).inner_text() for k in range(2)]
        assert heads == ["the teacher", "the student"]
        for side in (given["teacher"], given["students"][arm]):
            assert f"gave it {100 * side['came'][i]:.1f} %" in text
            assert side["choices"][i][0][0].replace(" ", "␣") in text
    tab.locator(".passage").nth(1).locator(".t").first.hover()
    assert not box.is_visible(), "the first token was not predicted"


LOOKS = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]


@pytest.mark.parametrize("tab", LOOKS, indirect=True, ids=lambda look: f"{look[0]}-{look[1]}")
def test_the_page_fits_its_window_and_nothing_in_it_runs(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.locator("figure svg").count() == 2
    assert tab.locator(".passage").count() == 3
    assert tab.evaluate("window.hurt") is None
    text = tab.locator(".passage").first.inner_text()
    assert "<script>hurt = 1</script>↵" in text
    assert "⟨E2⟩⟨80⟩⟨U+202E⟩" in text
