"""The built site in a real browser: it finds, shows, and fits, in both schemes and on a telephone."""

import pytest

PICTURES = ("index", "learn/2-kl-and-its-direction", "learn/recipes/gallery", "learn/recipes/two_modes", "performance")

OVER = """(() => {
  const page = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth;
  const text = document.querySelector(".content");
  return Math.max(page, text.scrollWidth - text.clientWidth);
})()"""


def test_the_search_finds_kl(address, chromium):
    page = chromium.new_page()
    said = listened(page)
    page.goto(f"{address}/index.html")
    page.fill("input[name=q]", "kl")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a")
    found = [link.get_attribute("href") for link in page.query_selector_all("#search-results ul.search li a")]
    assert any("reference/verbs.html#kullback.kl" in link for link in found[:10]), found[:10]
    page.goto(f"{address}/{found[0]}")
    assert said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_load_and_text_can_be_read(address, chromium, scheme):
    page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    said = listened(page)
    for name in PICTURES:
        page.goto(f"{address}/{name}.html")
        pictures = page.eval_on_selector_all(
            "article img", "all => all.map(x => [x.src, x.complete && x.naturalWidth])"
        )
        assert pictures, name
        assert [src for src, width in pictures if not width] == []
    ground, ink = (page.evaluate(f"getComputedStyle(document.body).{each}") for each in ("backgroundColor", "color"))
    assert (bright(ground) > 0.5) is (scheme == "light")
    assert abs(bright(ground) - bright(ink)) > 0.6
    assert said == []
    page.close()


def test_formulas_are_shown_without_a_script(address, chromium):
    page = chromium.new_page()
    page.goto(f"{address}/theory/1-canonical-sum.html")
    sizes = page.eval_on_selector_all("math", "all => all.map(x => x.getBoundingClientRect().width)")
    assert len(sizes) > 20
    assert min(sizes) > 3
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px \"Noto Sans Math\"'))")
    page.close()


def test_the_front_page_is_one_screen(address, chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/index.html")
    assert page.evaluate("document.querySelector('.doors').getBoundingClientRect().bottom") < 900
    assert len(page.query_selector_all("article img")) == 1
    page.close()


@pytest.mark.slow
def test_every_page_fits_a_telephone_and_is_silent(address, site, chromium):
    page = chromium.new_page(viewport={"width": 400, "height": 800})
    said = listened(page)
    names = sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html") if "_static" not in file.parts)
    assert len(names) > 60
    wide = []
    for name in names:
        page.goto(f"{address}/{name}", wait_until="domcontentloaded")
        over = page.evaluate(OVER)  # code, tables and formulas scroll by themselves; the text and the page do not
        wide += [(name, over)] if over > 0 else []
    assert wide == []
    assert said == []
    page.close()


def test_nothing_comes_from_elsewhere(address, site, chromium):
    page = chromium.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index", "reference/losses", "theory/1-canonical-sum", "search"):
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    page.close()


def listened(page):
    """What the page complains of."""
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("response", lambda response: said.append(response.url) if response.status >= 400 else None)
    return said


def bright(colour):
    """The mean of the channels of `rgb(r, g, b)`, from 0 to 1."""
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 765
