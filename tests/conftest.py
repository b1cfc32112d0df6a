"""Settings of the suite: one thread, repeatable Hypothesis runs, and the engine under test."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [
    str(TESTS),
    str(TESTS / "oracles"),
    str(TESTS / "engines"),
    str(TESTS / "integrations"),
]  # so that tests can say `from cases import ...`

from cases import ENGINES  # noqa: E402
from kullback.divergences import TABLE  # noqa: E402
from kullback.engines import cpu, use  # noqa: E402

settings.register_profile(
    "suite", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
torch.set_num_threads(1)
collect_ignore = ["mutate.py"]  # a program, which needs the extra 'mutate'


@pytest.fixture(params=ENGINES, scope="module")
def engine(request):
    """The tests that ask for it run once on every engine."""
    if request.param == "cpu" and cpu.ABSENT is not None:
        pytest.skip(cpu.ABSENT)
    with use(request.param):
        yield request.param


@pytest.fixture(params=TABLE, ids=lambda d: d.name, scope="module")
def divergence(request):
    """Every row of the table."""
    return request.param
