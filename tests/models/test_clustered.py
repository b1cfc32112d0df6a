"""bench/clustered.py: the intervals by document cover, those of independent tokens do not; the paired test."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("clustered_intervals", ROOT / "bench" / "clustered.py")
clustered = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = clustered
SPEC.loader.exec_module(clustered)
Setting = clustered.Setting


def noise(share, repetitions):
    """Three standard errors of a share that was counted."""
    return 3.0 * math.sqrt(share * (1.0 - share) / repetitions)


def check(setting, repetitions):
    found = clustered.measure(setting, repetitions)
    for name, ours, tokens in (
        ("KLD", found.kld[0], found.kld[2]),
        ("ratio", found.ratio[0], found.ratio[2]),
        ("same", found.same[0], found.same[2]),
        ("percentile", found.percentile, None),
    ):
        count = repetitions * found.given if name == "percentile" else repetitions
        assert 0.92 - noise(0.92, count) <= ours <= 0.98 + noise(0.98, count), (name, found)
        assert tokens is None or tokens < 0.85, (name, found)
    assert found.size <= 0.07 + noise(0.07, repetitions), found
    return found


def test_intervals_by_document_cover_and_those_of_tokens_do_not():
    found = check(Setting(30, 0.6, 0.5), 400)
    assert found.size >= 0.03 - noise(0.03, 400)


@pytest.mark.slow
@pytest.mark.parametrize("setting", clustered.SETTINGS, ids=str)
def test_every_setting_of_the_table_covers(setting):
    found = check(setting, 1500)
    # ten documents of which one has half of the tokens: the test errs on the safe side
    assert found.size >= (0.015 if (setting.documents, setting.lengths) == (10, 1.0) else 0.03 - noise(0.03, 1500))


@pytest.mark.slow
def test_degrees_of_freedom_of_unequal_documents_are_needed():
    found = clustered.measure(Setting(10, 1.0, 0.5), 1500)
    assert found.kld[1] < 0.92 - noise(0.92, 1500) < found.kld[0]


def test_the_simulated_documents_have_the_truths_they_are_compared_with():
    g = np.random.default_rng(0)
    setting = Setting(4000, 0.6, 0.5)
    document = clustered.documents(setting, g)
    x = clustered.normals(document, setting.level, g)
    assert x.var() == pytest.approx(1.25, rel=0.03)
    assert np.exp(x - 0.625).mean() == pytest.approx(1.0, abs=0.03)
    inside = document[1:] == document[:-1]
    assert np.corrcoef(x[1:][inside], x[:-1][inside])[0, 1] == pytest.approx((0.5 + 0.25) / 1.25, abs=0.02)
