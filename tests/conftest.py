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
    str(TESTS / "language"),
]  # so that tests can say `from cases import ...`

from cases import ENGINES  # noqa: E402
from here import browser_path  # noqa: E402
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


@pytest.fixture(scope="session")
def browser():
    """A browser without a window, as a command that the page's path completes."""
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    return [browser_path(), "--headless", "--no-sandbox", *quiet.split(), "--disable-sync"]


@pytest.fixture(scope="session")
def chromium():
    """A browser that a test may drive: `chromium.new_page(viewport=..., color_scheme=...)` of Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = browser_path()
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()
