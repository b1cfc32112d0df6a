"""report.html of a comparison: what it says, and what a browser makes of it."""

import json
import math
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("pyarrow")
from kullback.models import report

from . import synthetic

LOOKS = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its page: (results, path of the page)."""
    folder = tmp_path_factory.mktemp("run")
    results = synthetic.run_folder(folder)
    page = folder / "report.html"
    page.write_text(report.render(results, folder, synthetic.pieces), encoding="utf-8")
    return results, page


@pytest.fixture
def tab(chromium, run, request):
    """The page in a browser; what the console says fails the test."""
    width, scheme = getattr(request, "param", (1280, "light"))
    said, tab = [], chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda asked: said.append(asked.url) if asked.url != run[1].as_uri() else None)
    tab.goto(run[1].as_uri())
    yield tab
    tab.close()
    assert said == []


def test_the_page_is_one_small_file(run):
    text = run[1].read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    assert not re.search(r"\bsrc=|@import|<link|\bnan\b|\binf\b|Undefined", text)
    assert text.count("<svg") == text.count('<svg role="img" aria-label=') == 5


def test_the_summary_has_the_numbers_that_were_given(run):
    results = run[0]
    rows = report.summary_rows(results)
    assert [row[0] for row in rows[1:]] == ["bf16", "int8 <b>", "int4", "reference, other batches"]
    for row, one in zip(rows[1:], results["candidates"], strict=False):
        mean = report.of(one, report.MEAN)
        value, error = (float(x) for x in row[1].split(" ± "))
        assert value == pytest.approx(mean["value"], rel=0.05)
        assert error == pytest.approx(mean["clustered"], rel=0.05)
        low, high = (float(x) for x in row[2].split(" … "))
        assert (low, high) == pytest.approx((mean["low"], mean["high"]), rel=0.01)
        assert float(row[3]) == pytest.approx(mean["iid"], rel=0.06)
        zeros = one["histogram"]["zeros"] / results["text"]["measured"]
        assert float(row[-1]) == pytest.approx(100 * zeros, rel=0.01)


def test_the_verdict_names_the_nearest_and_how_sure_that_is(run):
    results = run[0]
    said = report.verdict(results)
    assert said.startswith("Closest to teacher: int8 <b>, with a KL of ")
    gap = results["pairs"][0]["difference"]
    assert f"The next, bf16, is farther by {gap['value']:.2e} (95 %: {gap['low']:.2e} to {gap['high']:.2e})." in said
    assert "The reference against itself (other batches):" in said
    assert "Not beyond that" not in said


def test_the_verdict_does_not_claim_what_chance_may_have_done(run):
    results = json.loads(json.dumps(run[0]))
    results["pairs"][0]["difference"] |= {"low": -1e-5}
    results["noise_floor"][0]["statistics"] = results["candidates"][0]["statistics"]
    results["status"] = "interrupted"
    said = report.verdict(results)
    assert "bf16 cannot be told from it" in said
    assert "Not beyond that: bf16, int8 <b>." in said
    assert said.startswith(f"Stopped after {results['text']['measured']:,} of ")
    swapped = json.loads(json.dumps(run[0]))
    pair = swapped["pairs"][0]
    pair["first"], pair["second"], d = pair["second"], pair["first"], pair["difference"]
    d |= {"value": -d["value"], "low": -d["high"], "high": -d["low"]}
    assert report.verdict(swapped) == report.verdict(run[0]), "whichever way a pair was taken"


def test_a_copy_of_the_reference_has_a_page(tmp_path):
    """KL is 0 everywhere: no logarithm of it, no share of it."""
    results = synthetic.run_folder(tmp_path, candidates={"copy": 0.0}, documents=2)
    text = report.render(results, tmp_path, synthetic.pieces)
    assert "copy is teacher, token by token: KL is exactly 0." in text
    assert "<!-- exactly 0 -->" in text


def test_numbers_that_do_not_exist_are_dashes(tmp_path):
    """One document has no errors by document; a stored reference no perplexity; a callable no classes."""
    results = synthetic.run_folder(tmp_path, candidates={"one": 1e-3, "two": 1e-3}, documents=1)
    for one in results["candidates"]:
        one["by_class"] = []
        for each in one["statistics"]["Perplexity statistics"]:
            each |= dict.fromkeys(("value", "iid", "clustered", "low", "high"))
    results["noise_floor"] = []
    text = report.render(results, tmp_path, synthetic.pieces)
    assert "lasses of tokens" not in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
    assert report.summary_rows(results)[1][2] == "–"


def test_a_run_that_was_stopped_before_it_measured_anything_has_a_page(tmp_path):
    results = synthetic.run_folder(tmp_path, status="interrupted")
    for one in results["candidates"]:
        del one["statistics"]
    results["text"]["measured"], results["pairs"], results["noise_floor"] = 0, [], []
    assert "Nothing was compared." in report.render(results, tmp_path, synthetic.pieces)


def test_an_infinite_mean_is_said(tmp_path):
    """JSON has no infinity; a candidate that rules out a token that came has no finite KL."""
    results = synthetic.run_folder(tmp_path, candidates={"finite": 1e-3, "infinite": 1e-2}, documents=3)
    one = results["candidates"][1]
    report_of = next(each for each in one["statistics"]["KL divergence statistics"] if each["name"] == report.MEAN)
    report_of |= dict.fromkeys(("value", "iid", "clustered", "low", "high"))
    one["worst"][0]["kl"] = None
    assert report.summary_rows(results)[2][:3] == ["infinite", "∞", "–"]
    text = report.render(results, tmp_path, synthetic.pieces)
    assert "Closest to teacher: finite" in text
    assert "<td>∞</td>" in text
    assert "<!-- infinite -->" in text


def test_the_text_is_coloured_by_the_farthest_candidate_first(run):
    page = run[1].read_text(encoding="utf-8")
    choices = re.findall(r'<input type="radio" name="layer" value="\d"[^>]*>([^<]*)<', page)
    assert choices == ["int4", "bf16", "int8 &lt;b&gt;"]


def test_a_log_of_llama_cpp_stands_beside_the_statistics(run):
    results = run[0] | {"llama_cpp": {"statistics": {"Mean KLD": "0.0001 ± 0.00001"}}}
    rows = {row[0]: row for row in report.block_rows(results, "KL divergence statistics")}
    assert rows[""][-1] == "llama.cpp"
    assert rows["Mean KLD, nats"][-1] == "0.0001 ± 0.00001"
    assert rows["Median KLD, nats"][-1] == "–"
    assert len(report.block_rows(run[0], "KL divergence statistics")[0]) == 4


def test_an_interrupted_run_shows_the_text_that_was_measured(tmp_path):
    """The middle document was not reached."""
    results = synthetic.run_folder(tmp_path, documents=2, status="interrupted")
    names = synthetic.pa.table({"name": [f"docs/module_{i}.txt" for i in range(9)], "tokens": [1] * 9})
    synthetic.pq.write_table(names, tmp_path / "documents.parquet")
    page = report.render(results, tmp_path, synthetic.pieces)
    assert page.count('class="passage"') == 2
    assert "Stopped after" in page


def test_a_context_is_of_neighbours_alone(run):
    """Spans that lie apart in a document are not run together."""
    path = run[1].parent / run[0]["candidates"][0]["tokens"]
    spans = [report.Span(0, 5, 9), report.Span(0, 100, 103), report.Span(1, 5, 9), report.Span(0, 7, 101)]
    found = report.read_tokens(path, spans)
    for span in spans:
        assert found[span]["position"].tolist() == list(range(span.first, span.last + 1))
        assert set(found[span]["document"]) == {span.document}


def test_what_a_stored_reference_does_not_know_is_left_out(run):
    """Top-k of a reference: fewer choices than three, and no probability of a token that is not listed."""
    span = report.Span(0, 1, 3)
    rows = report.read_tokens(run[1].parent / run[0]["candidates"][0]["tokens"], [span])[span]
    rows["log_p"][0], rows["log_q"][0] = math.nan, -math.inf
    rows["choices_p_ids"][0, 1:], rows["choices_p"][0, 1:] = -1, math.nan
    p, q = report.opinions("ref", "cand", rows, 0, report.Texts(synthetic.pieces))
    assert (len(p.choices), p.came) == (1, None)
    assert (len(q.choices), q.came) == (3, 0.0)


def test_many_candidates_still_make_a_small_page(tmp_path):
    names = {f"candidate with a rather long name {i}": 10.0 ** -(i % 5) for i in range(9)}
    results = synthetic.run_folder(tmp_path, candidates=names, documents=3)
    assert len(report.render(results, tmp_path, synthetic.pieces).encode()) < 900_000


def test_tables_sort(tab):
    table = tab.locator("table.sortable").first
    before = table.locator("tbody th").all_inner_texts()
    table.get_by_role("button", name="mean KL").click()
    assert table.locator("tbody th").all_inner_texts() == ["reference, other batches", "int8 <b>", "bf16", "int4"]
    table.get_by_role("button", name="mean KL").click()
    assert table.locator("tbody th").all_inner_texts() == ["int4", "bf16", "int8 <b>", "reference, other batches"]
    table.get_by_role("button", name="candidate").click()
    assert table.locator("tbody th").all_inner_texts() == sorted(before, key=str.lower)


def test_a_token_shows_what_both_models_held_likely(tab, run):
    """The box of a token of the first passage, against its row in the file."""
    candidate = run[0]["candidates"][2]
    i, span = 30, report.Span(0, 1, 60)
    rows = report.read_tokens(run[1].parent / candidate["tokens"], [span])[span]
    tab.get_by_label("int4").check()
    piece = tab.locator(".passage").first.locator(".t").nth(i)
    piece.hover()
    box = tab.locator("#passages-box")
    assert box.is_visible()
    text = box.inner_text()
    assert f"KL {report.significant(float(rows['kl'][i]))}" in text
    sides = box.locator(".opinion")
    assert sides.count() == 2
    for side, letter, name in ((sides.nth(0), "p", "teacher"), (sides.nth(1), "q", "int4")):
        said = side.inner_text()
        assert said.startswith(name)
        for k in range(3):
            assert report.named(synthetic.PIECES[rows[f"choices_{letter}_ids"][i, k]]) in said
            share = float(rows[f"choices_{letter}"][i, k])
            assert "<0.1 %" in said if share < 1e-3 else f"{100 * share:.1f} %" in said


@pytest.mark.parametrize("tab", LOOKS, indirect=True, ids=lambda look: f"{look[0]}-{look[1]}")
def test_the_page_fits_its_window_and_nothing_in_it_runs(tab):
    for details in tab.locator("details").all():
        details.evaluate("d => d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.locator("figure svg").count() == 5
    assert min(tab.eval_on_selector_all("figure svg", "all => all.map(s => s.getBoundingClientRect().height)")) > 60
    assert tab.locator(".passage").count() == 3
    assert tab.evaluate("window.hurt") is None
    assert "<script>hurt = 1</script>" in tab.locator(".passage").first.inner_text()
