"""Every page can be reached, and every public name has its place in the reference."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import zlib
from pathlib import Path

import pytest

import kullback
import kullback.integrations

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
LIST = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)

# public modules without `__all__`: what they define
WITHOUT_ALL = (
    "kullback.divergences",
    "kullback.losses.fgan",
    "kullback.metrics",
    "kullback.recommend",
)
# packages whose `__all__` is for the package itself
INSIDE = {"kullback.exact", "kullback.verbs", "kullback.core"}


def extension(name):
    """A module of docs/site."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lists(page, text=None):
    """The pages that a page puts into the navigation."""
    file = DOCS / f"{page}.md"
    text = file.read_text(encoding="utf-8") if text is None else text
    named = [line for block in LIST.findall(text) for line in block.splitlines() if line and line[0] != ":"]
    if file.name == "README.md" and not named:
        named = extension("pages").listed(file.parent)
    return [(file.parent / name).resolve().relative_to(DOCS).as_posix() for name in named]


def reached():
    seen, left = set(), ["index"]
    while left:
        page = left.pop()
        if page not in seen:
            seen.add(page)
            left += lists(page) if page in PAGES else []
    return seen


def test_every_page_is_in_the_navigation():
    pytest.importorskip("sphinx")
    missing = sorted(PAGES - reached())
    assert not missing, f"no list leads to {missing}: write them into a toctree of docs/index.md, where they belong"
    assert reached() <= PAGES, f"lists name pages that are not there: {sorted(reached() - PAGES)}"


def surface():
    """(module, name) of everything public."""
    found = {}
    for module in ("kullback", *modules(kullback)):
        names = getattr(importlib.import_module(module), "__all__", ())
        found[module] = [n for n in names if not inspect.ismodule(getattr(importlib.import_module(module), n))]
    adapters = [f"kullback.integrations.{one.name}" for one in pkgutil.iter_modules(kullback.integrations.__path__)]
    for module in (*WITHOUT_ALL, *adapters):
        if not module.rpartition(".")[2].startswith("_"):
            found[module] = defined(importlib.import_module(module))
    return found


def modules(package):
    """The modules and packages right below `kullback` that say what they offer."""
    for one in pkgutil.iter_modules(package.__path__, "kullback."):
        if not one.name.rpartition(".")[2].startswith("_") and one.name not in INSIDE:
            source = Path(importlib.util.find_spec(one.name).origin).read_text(encoding="utf-8")
            if re.search(r"^__all__", source, re.MULTILINE):
                yield one.name


def defined(module):
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def test_the_surface_is_what_we_think_it_is():
    found = surface()
    assert {"kullback", "kullback.losses", "kullback.estimate", "kullback.testing", "kullback.check"} <= found.keys()
    assert "kl" in found["kullback"]
    assert "Divergence" in found["kullback.metrics"]
    assert sum(map(len, found.values())) > 150


def entries_of(inventory):
    """The page of each Python name: four lines of text, then compressed lines of name, kind, priority, place, title."""
    lines = zlib.decompress(inventory.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {name: place for name, kind, _, place, _ in (line.split(" ", 4) for line in lines) if kind.startswith("py:")}


def test_every_public_name_is_in_the_reference(site):
    entries = entries_of(site / "objects.inv")
    assert entries["kullback.kl"].startswith("reference/verbs.html")
    missing = []
    for module, names in surface().items():
        for name in names:
            value = getattr(sys.modules[module], name)
            homes = {
                f"{module}.{name}",
                f"kullback.{name}" if getattr(kullback, name, None) is value else "",
                f"{getattr(value, '__module__', module)}.{getattr(value, '__qualname__', name)}",
            }
            if not any(entries.get(home, "").startswith("reference/") for home in homes):
                missing.append(f"{module}.{name}")
    assert not missing, f"write them into a page of docs/reference: {missing}"


def test_a_link_leads_to_the_same_place_on_the_site():
    target = extension("pages").target
    assert target("../CONVENTIONS.md", DOCS) == "/project/conventions.md"
    assert target("../README.md", DOCS) == "/index.md"
    assert target("decisions", DOCS) == "/decisions/README.md"
    assert target("2-gradients.md", DOCS / "theory") == "/theory/2-gradients.md"
    assert target("../bench/drift.py", DOCS) == "/../bench/drift.py"
    assert target("https://example.org/a.md", DOCS) == "https://example.org/a.md"
    text = "[a](../CHANGELOG.md#x) `[b](../CHANGELOG.md)`\n```\n[c](../CHANGELOG.md)\n```\n"
    assert extension("pages").with_links(text, DOCS) == text.replace("../CHANGELOG.md#x", "/project/changelog.md#x")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("p_v^a q^(1-a)", r"p\ :sub:`v`\ \ :sup:`a`\  q\ :sup:`1-a`\ "),
        ("num_classes of |p_v| * 2", r"num\_classes of \|p\ :sub:`v`\ \| \* 2"),
        ("see `kl`, `kl(p, q)`", r"see \ :py:obj:`kl <kl>`\ , \ ``kl(p, q)``\ "),
    ],
)
def test_prose_of_docstrings(said, meant):
    pytest.importorskip("sphinx")
    assert extension("docstrings").text([said]) == meant


def test_sections_of_docstrings():
    pytest.importorskip("sphinx")
    said = """Half of it.

Args: p, q: forms.  base: e gives nats.
Returns: Tensor (...), >= 0;
    of the batch.
Gradients: to p. Source: Lin 1991.

>>> 1 + 1
2
""".splitlines()
    made = [line for line in extension("docstrings").translated(said) if line.strip()]
    assert made == [
        "Half of it.",
        ":Args:",
        "   ``p``, ``q``",
        "      forms.",
        "   ``base``",
        "      e gives nats.",
        ":Returns:",
        "   Tensor (...), >= 0; of the batch.",
        ":Gradients:",
        "   to p.",
        ":Source:",
        "   Lin 1991.",
        ">>> 1 + 1",
        "2",
    ]
