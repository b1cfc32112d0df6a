"""One name, one meaning; and the words of an exact verb that is given what can only be estimated."""

import ast
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal

import kullback
from kullback import Counts, Logits, LogRatios, Probs, Samples, divergences, estimate, losses
from kullback.forms.empirical import what_to_estimate

SOURCE = Path(kullback.__file__).parent
X, XY = Samples([1.0, 2.0]), Samples([[1.0, 2.0], [3.0, 4.0]])
C, HALF = Counts([1, 2]), Probs([0.5, 0.5])
NORMAL, PLANE = Normal(0.0, 1.0), Independent(Normal(torch.zeros(2), 1.0), 1)


def test_no_estimator_shares_its_name_with_a_loss_or_a_divergence():
    others = set(losses.__all__) | {name for name in vars(divergences) if name.isupper()}
    assert not others & set(estimate.__all__)


@pytest.mark.parametrize("package", ["estimate", "forms"])
def test_no_private_name_crosses_files(package):
    found = []
    for path in (SOURCE / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").endswith("_errors"):
                found += [f"{path.name}: {one.name}" for one in node.names if one.name.startswith("_")]
    assert not found


@pytest.mark.parametrize(
    ("verb", "p", "q", "words"),
    [
        ("kl", X, X, "Write estimate.kl(p, q)."),
        ("kl", X, NORMAL, "Write estimate.kl(p, q)."),
        ("kl", PLANE, XY, "Write estimate.kl(p, q)."),
        ("kl", C, C, "Write estimate.kl(p, q)."),
        ("kl", C, HALF, "Write estimate.kl(p, q)."),
        ("jeffreys", X, X, "estimate.kl(p, q) + estimate.kl(q, p)"),
        ("js", X, X, "Counts of both in the same bins"),
        ("js", C, C, "estimate.bootstrap_divergence(divergences.js(0.5), p, q"),
        ("tv", C, HALF, "estimate.bootstrap_divergence(divergences.TV, p, q"),
        ("entropy", C, C, "entropy(Probs(x / x.sum()))"),
        ("kl", LogRatios([0.0], [0.0], "p"), X, "estimate.kl(p)"),
        ("kl", C, Logits([0.0, 0.0]), "one row of Probs"),
        ("kl", X, C, "Counts on both sides"),
        ("kl", X, HALF, "Counts on both sides"),
    ],
)
def test_what_an_exact_verb_says_of_samples_and_counts(verb, p, q, words):
    """P4."""
    said = what_to_estimate(verb, p, q)
    assert said.startswith(f"{verb}: p holds {type(p).__name__} and q {type(q).__name__}")
    assert words in said


@pytest.mark.parametrize(("p", "q"), [(X, PLANE), (NORMAL, XY), (X, XY)])
def test_no_estimator_is_advised_where_draws_have_different_shapes(p, q):
    said = what_to_estimate("kl", p, q)
    assert "estimate" not in said
    assert "()" in said
    assert "(2,)" in said


def test_known_sides_are_none_of_it():
    assert what_to_estimate("kl", HALF, NORMAL) is None


# what is advised works
@pytest.mark.parametrize(("p", "q"), [(C, C), (C, HALF), (HALF, C)])
def test_the_advised_calls_work(p, q):
    assert estimate.kl(p, q).value >= 0.0
    found = estimate.bootstrap_divergence(divergences.js(0.5), p, q, generator=torch.Generator(), replicates=20)
    assert found.value >= 0.0


def test_the_same_draws_twice_are_at_distance_zero():
    found = estimate.kl(XY, XY)
    assert (found.raw, found.value) == (0.0, 0.0)
    assert found.stderr != found.stderr
    assert "the same draws" in found.verdict
