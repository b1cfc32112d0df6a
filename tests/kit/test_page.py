"""Pages in a real browser: tables that sort, text coloured by numbers, and nothing from outside that acts."""

import json
import sys

import pytest

pytest.importorskip("jinja2")

from kullback.kit import page
from kullback.kit.passages import LEVELS, Layer, Opinion, Passage, bounds, level, named, prepare, visible

ROWS = [
    ["name", "value", "sure"],
    ["b", "0.5 ± 0.1", "12 %"],
    ["a", "1.2e-05", "–"],
    ["d", "∞", "3 %"],
    ["c", "-2", "1,000 %"],
]
HOSTILE = [
    "<script>window.hurt = 1</script>",
    "</script><img src=x onerror='hurt = 1'>",
    "\u202eabc",
    "\x00\x1b",
    "'\"&",
]


def passages(pieces, values=None, names=("one", "two")):
    """Each piece with a number, under two names."""
    values = values or [None, *(0.01 * k for k in range(1, len(pieces)))]
    box = [
        (
            Opinion("reference", (("the", 0.5), (" a", 0.25), ("\n", 0.0001)), 0.125),
            Opinion(f"of {piece}", ((piece, 0.9996), (" an", 0.0003)), None),
        )
        for piece in pieces
    ]
    layers = [Layer(name, [v and v * 10**k for v in values], box) for k, name in enumerate(names)]
    return [Passage("A <title>", pieces, layers)]


def rendered(folder, monkeypatch, body, scripts=("tables.js", "passages.js"), **values):
    """A page of a package that stands in a folder."""
    package = folder / "some_package"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "it.html.j2").write_text(
        '{% extends "page.html.j2" %}{% block title %}t{% endblock %}{% block body %}' + body + "{% endblock %}"
    )
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("some_package", None)
    text = page.render("some_package", "it.html.j2", of="distill", scripts=scripts, **values)
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


@pytest.fixture
def opened(chromium, tmp_path, monkeypatch):
    """Opens a body as a page; what the console says fails the test at its end."""
    said, pages = [], []

    def opening(body, width=1280, scheme="light", **values):
        path = rendered(tmp_path, monkeypatch, body, **values)
        tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(path.as_uri())
        pages.append(tab)
        return tab

    yield opening
    for tab in pages:
        tab.close()
    assert said == []


def column(tab, i):
    return tab.eval_on_selector_all("tbody tr", f"rows => rows.map(row => row.cells[{i}].innerText)")


def test_tables_sort_up_down_and_back(opened):
    tab = opened("{{ scrolling(rows, sortable=true) }}", rows=ROWS, scripts=["tables.js"])
    value, sure, name = (tab.get_by_role("button", name=text) for text in ("value", "sure", "name"))
    value.click()
    assert column(tab, 1) == ["-2", "1.2e-05", "0.5 ± 0.1", "∞"]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    value.click()
    assert column(tab, 1) == ["∞", "0.5 ± 0.1", "1.2e-05", "-2"]
    value.click()
    assert column(tab, 0) == ["b", "a", "d", "c"]
    assert tab.locator("th[aria-sort]").count() == 0
    sure.click()
    assert column(tab, 2) == ["3 %", "12 %", "1,000 %", "–"]
    sure.click()
    assert column(tab, 2) == ["1,000 %", "12 %", "3 %", "–"], "what is missing stays below"
    name.focus()
    tab.keyboard.press("Enter")
    assert column(tab, 0) == ["a", "b", "c", "d"]


def test_a_table_that_is_not_asked_to_sort_has_no_buttons(opened):
    tab = opened("{{ scrolling(rows) }}", rows=ROWS, scripts=["tables.js"])
    assert tab.get_by_role("button").count() == 0


def test_without_a_script_the_page_reads_and_says_nothing_of_scripts(tmp_path, monkeypatch, chromium):
    shown = prepare(passages(["one ", "two ", "three"]), unit="x", number=str)
    path = rendered(
        tmp_path, monkeypatch, "{{ scrolling(rows, sortable=true) }}{{ passages(shown) }}", rows=ROWS, shown=shown
    )
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    assert tab.locator(".passage").inner_text() == "one two three"
    assert tab.locator("td").first.inner_text() == "0.5 ± 0.1"
    assert not tab.locator("#passages-layers").is_visible()
    context.close()
    plain = rendered(tmp_path, monkeypatch, "{{ scrolling(rows) }}", scripts=(), rows=ROWS).read_text()
    assert "<script" not in plain
    assert "Content-Security-Policy" not in plain


def test_hover_focus_tap_and_arrows_show_the_box(opened):
    shown = prepare(passages(["first", " second", " third\n", "fourth"]), unit="KL", number=lambda v: f"{v:.3f}")
    tab = opened("{{ passages(shown) }}", shown=shown)
    box, pieces = tab.locator("#passages-box"), tab.locator(".passage .t")
    assert not box.is_visible()
    pieces.nth(0).hover()
    assert not box.is_visible(), "the first piece has no number"
    pieces.nth(1).hover()
    assert box.is_visible()
    text = box.inner_text()
    for part in ("␣second", "KL 0.010", "reference", "the", "50.0 %", "␣a", "↵", "<0.1 %", "gave it 12.5 %", ">99.9 %"):
        assert part in text
    assert pieces.nth(1).get_attribute("aria-describedby") == "passages-box"
    tab.mouse.move(1, 1)
    assert not box.is_visible()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")  # past the choice of the layer
    assert "KL 0.010" in box.inner_text()
    tab.keyboard.press("ArrowRight")
    assert "KL 0.020" in box.inner_text()
    tab.keyboard.press("ArrowDown")
    assert "KL 0.030" in box.inner_text()
    tab.keyboard.press("Home")
    assert "KL 0.010" in box.inner_text()
    tab.keyboard.press("End")
    assert "KL 0.030" in box.inner_text()
    tab.keyboard.press("Escape")
    assert not box.is_visible()
    pieces.nth(2).click()
    assert "KL 0.020" in box.inner_text()
    tab.mouse.click(5, 700)
    assert not box.is_visible()
    assert tab.locator(".passage [tabindex='0']").count() == 1, "one stop of the tabulator a passage"


def test_another_layer_colours_anew(opened):
    shown = prepare(passages(["a ", "b ", "c "]), unit="KL", number=lambda v: f"{v:g}")
    tab = opened("{{ passages(shown) }}", shown=shown)

    def grounds():
        return tab.eval_on_selector_all(".passage .t", "all => all.map(t => getComputedStyle(t).backgroundColor)")

    before = grounds()
    assert before[0] == "rgba(0, 0, 0, 0)"
    tab.get_by_label("two").check()
    assert grounds()[1] != before[1]
    tab.locator(".passage .t").nth(1).hover()
    assert "KL 0.1" in tab.locator("#passages-box").inner_text()
    tab.get_by_label("one").check()
    assert grounds() == before


def test_layers_may_have_scales_of_their_own(opened):
    shown = prepare(passages(["a ", "b ", "c "]), unit="KL", number=str, one_scale=False)
    tab = opened("{{ passages(shown) }}", shown=shown)
    read = "all => all.map(t => getComputedStyle(t).backgroundColor)"
    colours = tab.eval_on_selector_all(".passage .t", read)
    assert tab.locator(".scale:visible").inner_text().split()[-1] == "0.02"
    tab.get_by_label("two").check()
    assert tab.locator(".scale:visible").inner_text().split()[-1] == "0.2"
    assert tab.eval_on_selector_all(".passage .t", read) == colours, "ten times as much, on a scale ten times as high"


def test_a_box_stays_within_a_narrow_window(opened):
    pieces = ["word " for _ in range(60)] + ["x" * 300]
    tab = opened("{{ passages(shown) }}", width=400, shown=prepare(passages(pieces), unit="KL", number=str))
    for i in (6, 7, 20, 59, 60):
        tab.locator(".passage .t").nth(i).hover()
        inside = tab.evaluate(
            "() => { const r = document.getElementById('passages-box').getBoundingClientRect();"
            " return r.left >= 0 && r.right <= document.documentElement.clientWidth && r.width > 100 }"
        )
        assert inside, i
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), i


CONTRASTS = """() => {
  const linear = (x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour }
    return "rgb(255, 255, 255)" };
  const all = ".passage .t, .scale span, #passages-box span, #passages-box div, th button";
  return [...document.querySelectorAll(all)].map((t) => {
    const [a, b] = [light(getComputedStyle(t).color), light(ground(t))].sort((x, y) => y - x);
    return [t.className.replace(" on", ""), (a + 0.05) / (b + 0.05)] }) }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read(opened, scheme):
    values = [None, 1e-9, *(1.01 * v for v in bounds([1.0]))]
    pieces = [f"{k} " for k in range(len(values))]
    shown = prepare(passages(pieces, values, names=("one",)), unit="KL", number=str)
    tab = opened("{{ scrolling(rows, sortable=true) }}{{ passages(shown) }}", scheme=scheme, rows=ROWS, shown=shown)
    tab.locator(".passage .t").nth(3).hover()
    found = tab.evaluate(CONTRASTS)
    assert {name for name, _ in found} >= {"t ln", *(f"t l{k}" for k in range(LEVELS + 1))}
    assert min(ratio for _, ratio in found) >= 4.5, found
    grounds = tab.eval_on_selector_all(".passage .t", "all => all.map(t => getComputedStyle(t).backgroundColor)")
    assert len(set(grounds)) == LEVELS + 1


def test_text_from_outside_does_not_act(opened):
    pieces = ["start", *HOSTILE, *(h + " " for h in HOSTILE)]
    shown = prepare(passages(pieces, names=("<script>hurt = 1</script>", "b")), unit="<b>", number=str)
    rows = [["<i>"], *([h] for h in HOSTILE)]
    tab = opened("{{ scrolling(rows) }}{{ passages(shown) }}", rows=rows, shown=shown)
    for i in range(1, len(pieces)):
        tab.locator(".passage .t").nth(i).hover()
    assert tab.evaluate("window.hurt") is None
    text = tab.locator(".passage").inner_text()
    for seen in ("<script>window.hurt = 1</script>", "⟨U+202E⟩abc", "⟨00⟩⟨1B⟩", "'\"&"):
        assert seen in text


def test_what_slips_in_may_not_run_nor_load(tmp_path, monkeypatch, chromium):
    body = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'><iframe src='other.html'></iframe>"
    (tmp_path / "other.html").write_text("<p>other</p>")
    asked, tab = [], chromium.new_page()
    tab.on("response", lambda response: asked.append(response.url.rpartition("/")[2]))
    tab.goto(rendered(tmp_path, monkeypatch, body, scripts=("tables.js",)).as_uri())
    assert tab.evaluate("window.hurt") is None
    assert "other.html" not in asked, "nor is anything asked for"
    tab.goto(rendered(tmp_path, monkeypatch, body, scripts=()).as_uri())
    assert tab.evaluate("window.hurt") == 1, "the policy of the page above, not the browser, has stopped it"
    assert "other.html" in asked
    tab.close()


def test_text_that_runs_from_the_right_keeps_its_order(opened):
    pieces = ["שלום", " עולם", " טוב"]
    tab = opened("{{ passages(shown) }}", shown=prepare(passages(pieces), unit="KL", number=str))
    lefts = tab.eval_on_selector_all(".passage .t", "all => all.map(t => t.getBoundingClientRect().left)")
    assert lefts == sorted(lefts, reverse=True)
    tab.locator(".passage .t").nth(1).click()
    tab.keyboard.press("ArrowLeft")
    assert "KL 0.02" in tab.locator("#passages-box").inner_text()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a b", "a b"),
        ("\r\n", "⟨0D⟩↵\n"),
        ("\x1b[0m\x7f", "⟨1B⟩[0m⟨7F⟩"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\u200b\ufeff\u00ad", "⟨U+200B⟩⟨U+FEFF⟩⟨U+00AD⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800\udcff", "⟨U+D800⟩⟨FF⟩"),
        ("\ufffd é ∑ 漢 👍", "\ufffd é ∑ 漢 👍"),
        ("\U0010ffff", "⟨U+10FFFF⟩"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, seen):
    assert visible(text) == seen
    visible(text).encode()  # no half of a pair is left


def test_spaces_at_the_ends_of_a_name_show():
    assert [named(t) for t in ("  a b ", " ", "\t\n", "")] == ["␣␣a b␣", "␣", "⇥↵", "(nothing)"]


def test_colours_are_parts_of_decades_below_the_largest():
    assert bounds([2.0], count=3) == [0.5, 1.0, 2.0]
    assert bounds([1000.0], count=3) == [200.0, 500.0, 1000.0]
    assert bounds([0.00099], count=2) == [0.0002, 0.0005]
    assert bounds([0.4, 0.4, 3.5], count=3) == [0.3, 1.0, 3.0]
    assert bounds([1e-7, 1e-7, 1e-7, 1.5], count=3) == [0.01, 0.1, 1.0]
    assert bounds([0.0, None, float("inf")], count=2) == [0.1, 1.0]
    lowest = bounds([0.5, 2.0])
    assert [level(v, lowest) for v in (None, 0.0, lowest[0], lowest[-1], 2.0, 9.0)] == [0, 0, 1, 7, 7, 7]


def test_what_is_shown_often_is_kept_once():
    pieces = [" the"] * 400
    shown = prepare(passages(pieces), unit="KL", number=lambda v: f"{v:.3g}")
    assert len(json.dumps(shown.data)) < 30 * 800
    assert len(shown.data["sides"]) == 2
