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
    ("verbs", "total"),
    ("extend", "testing"),
    ("estimate",),
    ("losses", "torch_compat"),
    ("distill", "recommend", "compare"),
    ("recipes",),
    ("cli", "__main__"),
)
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


def test_the_reader_of_imports_sees_them():
    seen = imported(SOURCE / "verbs.py")
    assert {"divergences", "_errors", "engines", "forms", "route"} <= seen
    assert "core" in imported(SOURCE / "divergences.py")
    assert "core" in imported(SOURCE / "engines" / "eager.py")


def test_the_package_itself_only_re_exports():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    assert all(isinstance(n, ast.ImportFrom | ast.Assign | ast.Expr) for n in tree.body)


def test_importing_the_package_is_light():
    """Whatever torch itself imports does not count."""
    code = "import sys, torch; before = set(sys.modules); import kullback; print(*(set(sys.modules) - before))"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "kullback" in new
    assert not {name.partition(".")[0] for name in new} & set(HEAVY)
