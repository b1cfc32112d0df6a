"""The public surface: what `__all__` says, each with a docstring whose example runs (pytest runs them as doctests)."""

import importlib
import importlib.util
import inspect
import types

import pytest

import kullback
from kullback.divergences import FAMILIES

ROOTS = [
    name
    for name in ("kullback", "kullback.losses", "kullback.torch_compat", "kullback.estimate", "kullback.testing")
    if importlib.util.find_spec(name)
]
SURFACE = [(root, name) for root in ROOTS for name in getattr(importlib.import_module(root), "__all__", ())]
VERBS = (*FAMILIES, "entropy")


@pytest.mark.parametrize("root", ROOTS)
def test_all_is_sorted_unique_and_complete(root):
    module = importlib.import_module(root)
    names = module.__all__
    assert sorted(set(names)) == sorted(names)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "").startswith(root)
        and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert public <= set(names), f"public but not in {root}.__all__: {sorted(public - set(names))}"
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize(("root", "name"), SURFACE)
def test_no_private_name_is_exported(root, name):
    assert not name.startswith("_")
    value = getattr(importlib.import_module(root), name)
    assert not getattr(value, "__name__", name).startswith("_")


@pytest.mark.parametrize(("root", "name"), SURFACE)
def test_everything_public_is_documented_with_an_example(root, name):
    value = getattr(importlib.import_module(root), name)
    doc = inspect.getdoc(value) or ""
    assert len(doc.splitlines()[0]) > 10
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    is_result = value is kullback.Route  # made by `explain`, whose example shows it
    assert is_error or is_result or ">>> " in doc, f"{root}.{name} has no example"


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_what_a_contract_says(name):
    doc = inspect.getdoc(getattr(kullback, name))
    for part in ("Args:", "Returns:", "Gradients:", "Source:", ">>> "):
        assert part in doc, f"{name} does not say {part}"


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_takes_forms_by_position_only(name):
    parameters = list(inspect.signature(getattr(kullback, name)).parameters.values())
    sides = [p for p in parameters if p.name in ("p", "q")]
    assert len(sides) == (1 if name == "entropy" else 2)
    assert all(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in sides)


def test_every_verb_and_form_is_there():
    assert {*VERBS, "Logits", "LogProbs", "Probs", "Labels", "explain", "FormError", "NoExactMethod"} <= set(
        kullback.__all__
    )


def test_the_package_is_typed_and_versioned():
    from pathlib import Path

    assert (Path(kullback.__file__).parent / "py.typed").exists()
    assert kullback.__version__.count(".") == 2
