"""Mutation testing of the numeric code: change one operator or number, and see whether a test notices.

    python tests/mutate.py                                  a sample of 12 mutations of every numeric file
    python tests/mutate.py exact/special.py losses/ --sample 40
    python tests/mutate.py --again                          only what survived the last run and is open

cosmic-ray makes the mutations (`OPERATORS`); those of a file are shuffled with a fixed seed and the first ones are
tried. Every trial is a fork of one process that has imported PyTorch but not kullback: it imports the mutated module in
place of the real one, and runs tests that execute the mutated statement (the quick suite under coverage.py says which)
until one fails: those of one file first, then one case of every test function, then more, up to `--budget` seconds of
their usual time; what survives that is tried on `--last` seconds more. A trial without end is ended by its CPU time and
counts as caught; a mutation with which kullback cannot be imported is not counted.

Annotations and error messages are left alone. Results are written to docs/mutations.md, where a person says of each
survivor what it is: `equivalent` (no value can differ) leaves the count, `caught by` a test that the budget left out
counts as caught, anything else stays. A judgement is kept for as long as the line reads as it did.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import NamedTuple

import coverage
import mpmath  # noqa: F401  (imported before the forks, as are the next ones: a trial then starts in half a second)
import numpy as np  # noqa: F401
import pytest
import scipy.integrate
import scipy.special
import scipy.stats  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from hypothesis import strategies  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PAGE, COVER = ROOT / "src" / "kullback", ROOT / "docs" / "mutations.md", ROOT / "build" / "mutation-cover.json"
FILES = ("core", "exact", "estimate", "losses", "forms", "route.py", "terms.py")
TESTS = ("exact", "estimate", "losses", "forms", "laws", "oracles", "gradients", "test_route.py", "test_terms.py")
# what ranks do, other processes execute, which neither see the mutation nor count as coverage
LEFT_OUT = ("core/sharded.py", "forms/sharded.py")
CAUGHT, SURVIVED, UNFIT = "caught", "survived", "unfit"

_ARITHMETIC = {"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "Pow": "Mul", "FloorDiv": "Mul", "Mod": "Mul"}
_COMPARISON = {
    "Lt": ("LtE", "Gt"),
    "LtE": ("Lt", "GtE"),
    "Gt": ("GtE", "Lt"),
    "GtE": ("Gt", "LtE"),
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
OPERATORS = [
    "core/NumberReplacer",
    "core/AddNot",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ZeroIterationForLoop",
    "core/ReplaceUnaryOperator_USub_UAdd",
    "core/ReplaceUnaryOperator_Delete_Not",
    "core/ReplaceUnaryOperator_Delete_Invert",
    "core/ReplaceBinaryOperator_BitAnd_BitOr",
    "core/ReplaceBinaryOperator_BitOr_BitAnd",
    *(f"core/ReplaceBinaryOperator_{a}_{b}" for a, b in _ARITHMETIC.items()),
    *(f"core/ReplaceComparisonOperator_{a}_{b}" for a, many in _COMPARISON.items() for b in many),
]


class Mutant(NamedTuple):
    file: str  # below src/kullback
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        return f"`` {self.before} `` → `` {self.after} ``"


def silent_places(tree: ast.Module) -> set[tuple[int, int]]:
    """(line, column) of everything in annotations and error messages, where a change is no number's concern."""
    found: set[tuple[int, int]] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            parts = [
                node.returns,
                *(a.annotation for a in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)),
            ]
            parts += [a.annotation for a in (node.args.vararg, node.args.kwarg) if a]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
        ):
            parts = [node.value] if node.col_offset == 0 else []  # an alias of types
        elif isinstance(node, ast.Raise):
            parts = [node.exc]
        for part in parts:
            if part is not None:
                found |= {
                    (inner.lineno, column)
                    for inner in ast.walk(part)
                    if hasattr(inner, "lineno")
                    for column in range(inner.col_offset, inner.end_col_offset or 0)
                    if inner.lineno == inner.end_lineno
                }
    return found


class Site(NamedTuple):
    """Where an operator applies: its how-manieth occurrence in the file, and the place."""

    operator: str
    occurrence: int
    line: int
    column: int


def sites(source: str) -> list[Site]:
    """Every mutation of a file, in the order of the operators."""
    silent, lines, found = silent_places(ast.parse(source)), source.split("\n"), []
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = get_operator(name)()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for i, (line, column) in enumerate(places):
            text = lines[line - 1]
            separator = text[column : column + 2] in ("*,", "/,")  # between the parameters of a function
            if (line, column) not in silent and not separator and not text.lstrip().startswith(("import ", "from ")):
                found.append(Site(name, i, line, column))
    return found


def planted(file: str, source: str, site: Site) -> Mutant:
    mutated = mutate_code(source, get_operator(site.operator)(), site.occurrence)
    assert mutated is not None
    pairs = zip(source.split("\n"), mutated.split("\n"), strict=False)
    line, (before, after) = next(((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1]), (site.line, ("", "")))
    return Mutant(file, line, before.strip(), after.strip(), mutated)


class Cover(NamedTuple):
    """Which tests execute a line, and how long each takes."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that execute the mutated statement; of a statement that only imports execute, all of its file."""
        known = self.lines.get(mutant.file, {})
        within: tuple[int, int] = (mutant.line, mutant.line)
        for node in ast.walk(ast.parse((PACKAGE / mutant.file).read_text())):
            if isinstance(node, ast.stmt) and node.lineno <= mutant.line <= (node.end_lineno or 0):
                body = getattr(node, "body", None)
                end = body[0].lineno - 1 if body else node.end_lineno or 0
                if mutant.line <= max(end, node.lineno):
                    within = (node.lineno, max(end, node.lineno))
        found = {test for line in range(within[0], within[1] + 1) for test in known.get(str(line), [])}
        return sorted((found - {""}) or {t for tests in known.values() for t in tests} - {""})

    def chosen(self, tests: Iterable[str], budget: float, files: int | None = None) -> list[str]:
        """One case of each function, the quickest first; then a second; as far as the budget goes.

        files: only those with the most functions, as collecting a file takes longer than many of its tests.
        """
        tests = list(tests)
        if files is not None:
            many = Counter(name.split("::")[0] for name in {test.split("[")[0] for test in tests})
            best = {file for file, _ in many.most_common(files)}
            tests = [test for test in tests if test.split("::")[0] in best]
        functions: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda t: (self.seconds[t], t)):
            functions[test.split("[")[0]].append(test)
        turns = sorted((turn, self.seconds[t], t) for many in functions.values() for turn, t in enumerate(many))
        picked, spent = [], 0.0
        for _, seconds, test in turns:
            if spent + seconds > budget and picked:
                continue
            picked.append(test)
            spent += seconds
        return picked


class Only:
    """Runs the named tests, in the order of the names."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


class Watch:
    """Notes who executes what, and for how long. One engine will do, and some cases of every function."""

    def __init__(self, watched: coverage.Coverage, most: int = 60) -> None:
        self.watched, self.most, self.seconds, self.bad = watched, most, {}, set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept: set[pytest.Item] = set()
        cases: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in items:
            if getattr(item, "callspec", None) is None or item.callspec.params.get("engine") != "cpu":
                cases[item.nodeid.split("[")[0]].append(item)
        for name, many in cases.items():
            kept |= set(random.Random(name).sample(many, min(self.most, len(many))))
        items[:] = [item for item in items if item in kept]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.watched.switch_context(item.nodeid)
        begun = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - begun
        self.watched.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self.bad.add(report.nodeid)


QUIET = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--no-header", "--tb=no", "-r", "N", "-o", "testpaths="]
QUIET += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that were imported before the fork


def measure_cover() -> Cover:
    """Run the quick tests once, in a fork of this process."""
    COVER.parent.mkdir(exist_ok=True)
    if os.fork() == 0:
        watched = coverage.Coverage(data_file=None, source=[str(PACKAGE)], config_file=False)
        watch = Watch(watched)
        watched.start()
        pytest.main([*QUIET, *(str(ROOT / "tests" / t) for t in TESTS)], plugins=[watch])
        watched.stop()
        data = watched.get_data()
        lines = {
            str(Path(path).relative_to(PACKAGE)): {
                line: [t for t in tests if t not in watch.bad] for line, tests in data.contexts_by_lineno(path).items()
            }
            for path in data.measured_files()
        }
        COVER.write_text(json.dumps({"lines": lines, "seconds": watch.seconds}))
        os._exit(0)
    os.wait()
    return Cover(**json.loads(COVER.read_text()))


class Planted(MetaPathFinder, Loader):
    """Imports the mutated module in place of the real one."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = ".".join(["kullback", *Path(mutant.file).with_suffix("").parts]).removesuffix(".__init__")

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        where = str(PACKAGE / self.mutant.file)
        inner = [str(PACKAGE / Path(self.mutant.file).parent)] if where.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(name, where, loader=self, submodule_search_locations=inner)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.mutant.source, str(PACKAGE / self.mutant.file), "exec"), module.__dict__)


def trial(mutant: Mutant, tests: list[str], expected: float) -> str:
    """Run the tests on the mutated package, in a fork."""
    child = os.fork()
    if child == 0:
        end = 80
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            seconds = int(8 + 3 * expected)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            sys.meta_path.insert(0, Planted(mutant))
            try:
                import kullback.losses  # noqa: F401
            except Exception:
                os._exit(90)
            files = sorted({test.split("::")[0] for test in tests})
            end = int(pytest.main([*QUIET, "-x", *(str(ROOT / f) for f in files)], plugins=[Only(tests)]))
        os._exit(end)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        return CAUGHT
    return {0: SURVIVED, 5: SURVIVED, 90: UNFIT}.get(os.WEXITSTATUS(status), CAUGHT)


# ------------------------------------------------------------------------------------------------------------ the page

_HEAD = re.compile(r"^### (\S+): (\d+) of (\d+) caught")
_DRAWN = re.compile(r": (\d+) of (\d+) caught\n\nDrawn \d+ of \d+: (\d+) cannot be imported")
_LINE = re.compile(r"^\* (`` .* `` → `` .* ``): (.*)$")


def read_page(page: Path) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Each file's section as it stands, and the judgements in it."""
    sections: dict[str, str] = {}
    judged: dict[tuple[str, str], str] = {}
    file = ""
    for line in page.read_text().splitlines() if page.exists() else []:
        if head := _HEAD.match(line):
            file = head[1]
            sections[file] = ""
        elif found := _LINE.match(line):
            judged[file, found[1]] = found[2]
        if file:
            sections[file] += line + "\n"
    return sections, judged


def section(
    file: str, counts: Counter[str], total: int, survivors: list[Mutant], judged: dict[tuple[str, str], str]
) -> str:
    told = [(m, judged.get((file, m.name), "open")) for m in survivors]
    equivalent, seen = (sum(words.startswith(said) for _, words in told) for said in ("equivalent", "caught by"))
    tried = counts[CAUGHT] + counts[SURVIVED]
    head = f"### {file}: {counts[CAUGHT] + seen} of {tried - equivalent} caught\n\n"
    head += f"Drawn {tried + counts[UNFIT]} of {total}: {counts[UNFIT]} cannot be imported, {equivalent} equivalent.\n"
    return head + "".join(f"\n* {m.name}: {words}" for m, words in told) + "\n" * bool(told)


def write_page(page: Path, sections: dict[str, str]) -> None:
    top = page.read_text().split("<!-- results of tests/mutate.py -->")[0] if page.exists() else ""
    caught = tried = 0
    for text in sections.values():
        head = _HEAD.match(text)
        assert head is not None
        caught, tried = caught + int(head[2]), tried + int(head[3])
    share = f"**{caught} of {tried} caught: {100 * caught / max(tried, 1):.1f} %.**\n"
    body = "\n".join(sections[file].strip() + "\n" for file in sorted(sections))
    page.write_text(f"{top}<!-- results of tests/mutate.py -->\n\n{share}\n{body}")


def survivors_of(file: str, source: str, every: list[Site], text: str) -> list[Mutant]:
    """The mutations that a section of the page lists, as far as their lines still read so."""
    lines, names = source.split("\n"), [found[1] for line in text.splitlines() if (found := _LINE.match(line))]
    mutants: dict[str, list[Mutant]] = defaultdict(list)
    for site in every:
        if any(name.startswith(f"`` {lines[site.line - 1].strip()} ``") for name in names):
            mutant = planted(file, source, site)
            mutants[mutant.name].append(mutant)
    return [mutants[name].pop(0) for name in names if mutants[name]]


def attempt(mutant: Mutant, cover: Cover, budget: float, last: float) -> str:
    """What becomes of a mutation on ever more tests."""
    tests, done = cover.tests(mutant), set[str]()
    for seconds, of in [(1.0, 1), (budget, None), (last, None)]:
        picked = cover.chosen([t for t in tests if t not in done], seconds, of)
        done |= set(picked)
        if picked:
            end = trial(mutant, picked, sum(cover.seconds[t] for t in picked))
            if end != SURVIVED:
                return end
    return SURVIVED


def files(wanted: list[str]) -> list[str]:
    every = [
        str(path.relative_to(PACKAGE))
        for part in FILES
        for path in ([PACKAGE / part] if part.endswith(".py") else sorted((PACKAGE / part).rglob("*.py")))
    ]
    return [f for f in every if f not in LEFT_OUT and (not wanted or any(f.startswith(w) for w in wanted))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files or folders below src/kullback")
    parser.add_argument("--sample", type=int, default=12, help="mutations a file; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of tests a mutation")
    parser.add_argument("--last", type=float, default=30.0, help="seconds more for one that survives these")
    parser.add_argument("--again", action="store_true", help="try only what survived the last run and is open")
    parser.add_argument("--fresh", action="store_true", help="run the suite under coverage.py anew")
    parser.add_argument("--page", type=Path, default=PAGE, help="where results go, for a second sample")
    parser.add_argument("--list", action="store_true", help="only count the mutations")
    options = parser.parse_args()
    options.page = options.page.resolve()
    torch.set_num_threads(1)
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.list:
        for file in files(options.files):
            print(f"{len(sites((PACKAGE / file).read_text())):5d} {file}")
        return
    cover = measure_cover() if options.fresh or not COVER.exists() else Cover(**json.loads(COVER.read_text()))
    sections, judged = read_page(options.page)
    for file in files(options.files):
        source = (PACKAGE / file).read_text()
        every, begun = sites(source), time.monotonic()
        counts: Counter[str] = Counter()
        if options.again:
            old = _DRAWN.search(sections.get(file, ""))
            if old is None:
                continue
            seen = sections[file].count(" ``: caught by")
            counts.update({CAUGHT: int(old[1]) - seen, UNFIT: int(old[3])})
            drawn = survivors_of(file, source, every, sections[file])
        else:
            random.Random(f"{options.seed} {file}").shuffle(every)
            drawn = [planted(file, source, site) for site in every[: options.sample or len(every)]]
        if not drawn:
            continue
        survivors = []
        for mutant in drawn:
            settled = options.again and not judged.get((file, mutant.name), "open").startswith("open")
            end = SURVIVED if settled else attempt(mutant, cover, options.budget, options.last)
            counts[end] += 1
            if judged.get((file, mutant.name), "").startswith("equivalent") and end == CAUGHT:
                print(f"judged equivalent, but caught: {file}:{mutant.line}: {mutant.name}", flush=True)
            if end == SURVIVED:
                survivors.append(mutant)
            if end == SURVIVED and not settled:
                print(f"survived: {file}:{mutant.line}: {mutant.name}", flush=True)
        sections[file] = section(file, counts, len(every), survivors, judged)
        write_page(options.page, sections)
        print(f"{file}: {dict(counts)}, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
