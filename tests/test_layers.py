"""A lower layer never imports a higher one, and importing the package imports nothing heavy beyond PyTorch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kullback

SOURCE = Path(kullback.__file__).parent
# lowest first; what stands in one line may import each other
LAYERS = (
    ("_errors", "_cpu"),
    ("core",),
    ("forms", "divergences"),
    ("engines",),
    ("exact",),
    ("route",),
    ("verbs", "terms"),
    ("extend", "testing"),
    ("estimate",),
    ("losses", "torch_compat"),
    ("recommend", "metrics"),
    ("kit",),
    ("language",),
    ("integrations",),
    ("check", "coding", "data", "distill", "kl_command", "lm", "models", "recipes"),
    ("cli", "__main__"),
)
APPLICATIONS = LAYERS[-2]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# what `import kullback` must not pull in: extras and other heavy packages
HEAVY = (
    "sklearn",
    "polars",
    "pandas",
    "matplotlib",
    "typer",
    "click",
    "rich",
    "jinja2",
    "safetensors",
    "scipy",
    "mpmath",
    "triton",
    "duckdb",
    "narwhals",
    "pyarrow",
    "pyspark",
    "transformers",
    "accelerate",
    "tokenizers",
    "peft",
    "trl",
    "datasets",
    "lightning",
    "sphinx",
)


def files():
    return [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """First name under `kullback` of everything that the file imports, at any depth."""
    package = ["kullback", *path.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found |= {(*base, alias.name) for alias in node.names}
    names = {name[1] for name in found if name[0] == "kullback" and len(name) > 1}
    # what the package re-exports is made of layers up to the verbs
    return {"verbs" if name in kullback.__all__ and name not in LEVEL else name for name in names}


def test_every_module_has_its_layer():
    assert {unit(path) for path in files()} <= LEVEL.keys()


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_import_goes_up(path):
    own = LEVEL[unit(path)]
    for name in imported(path):
        assert name in LEVEL, f"{path.name} imports kullback.{name}, which has no layer (import it from its module)"
        assert LEVEL[name] <= own, f"{path.name} (layer {own}) imports kullback.{name} (layer {LEVEL[name]})"


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_imports_no_other(name):
    for path in (SOURCE / name).rglob("*.py"):
        assert not imported(path) & (set(APPLICATIONS) - {name}), path


def test_the_kit_knows_nothing_of_divergences():
    for path in (SOURCE / "kit").glob("*.py"):
        assert imported(path) <= {"kit", "_errors"}, path


def test_nothing_but_applications_and_the_command_imports_the_kit():
    users = {unit(path) for path in files() if "kit" in imported(path)}
    assert users <= {*APPLICATIONS, "language", "integrations", "kit", "cli"}


def module_of(path: Path) -> str:
    return ".".join(["kullback", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def modules_imported(path: Path) -> set[str]:
    """Modules of kullback that the file itself imports, at any depth."""
    package = ["kullback", *path.relative_to(SOURCE).parts[:-1]]
    known = {module_of(each) for each in SOURCE.rglob("*.py")}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            named = {".".join([*base, alias.name]) for alias in node.names}
            found |= {name if name in known else ".".join(base) for name in named}
    return found & known


@pytest.mark.parametrize("name", ["kit", "language", "integrations", *APPLICATIONS])
def test_no_files_import_each_other_in_a_circle(name):
    graph = {module_of(path): modules_imported(path) for path in (SOURCE / name).rglob("*.py")}
    while free := {module for module, wants in graph.items() if not wants & (graph.keys() - {module})}:
        graph = {module: wants for module, wants in graph.items() if module not in free}
    assert not graph, f"in a circle, or behind one: {sorted(graph)}"


PRIVATE_MODULES = {"_errors", "_cpu"}


def private_names(path: Path) -> set[str]:
    """Names with a leading underscore that the file imports from another file of kullback, or reads off one."""
    package = ["kullback", *path.relative_to(SOURCE).parts[:-1]]
    tree, found, modules = ast.parse(path.read_text()), set(), {}
    known = {module_of(each) for each in SOURCE.rglob("*.py")}
    here = path.relative_to(SOURCE)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        base = [*base, *(node.module.split(".") if node.module else [])]
        if base[:1] != ["kullback"]:
            continue
        home = ".".join(base[1:])
        for alias in node.names:
            if ".".join([*base, alias.name]) in known:
                modules[alias.asname or alias.name] = ".".join([*base[1:], alias.name])
            hidden = [part for part in (*base[1:], alias.name) if part.startswith("_") and not part.startswith("__")]
            if set(hidden) - PRIVATE_MODULES:
                found.add(f"{home}.{alias.name} in {here}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            value = node.value
            if isinstance(value, ast.Name) and value.id in modules and value.id not in PRIVATE_MODULES:
                found.add(f"{modules[value.id]}.{node.attr} in {here}")
    return found


def test_no_private_name_is_imported_across_files():
    found = set().union(*map(private_names, files()))
    assert found == set(), "give them a public name, or leave them at home"


def test_the_reader_of_imports_sees_them():
    seen = imported(SOURCE / "verbs.py")
    assert {"divergences", "_errors", "engines", "forms", "route"} <= seen
    assert "core" in imported(SOURCE / "divergences.py")
    assert "core" in imported(SOURCE / "engines" / "eager.py")


def test_the_package_itself_only_re_exports():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    assert all(isinstance(n, ast.ImportFrom | ast.Assign | ast.AugAssign | ast.Expr) for n in tree.body)


def test_importing_the_package_is_light():
    """Whatever torch itself imports does not count."""
    code = "import sys, torch; before = set(sys.modules); import kullback; print(*(set(sys.modules) - before))"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "kullback" in new
    assert not {name.partition(".")[0] for name in new} & set(HEAVY)
