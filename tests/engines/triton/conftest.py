"""The Triton engine's tests interpret the kernels, which has to be said before Triton is imported."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))  # so that tests can say `from triton_common import ...`
INSTALLED = importlib.util.find_spec("triton") is not None
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    if INSTALLED:
        return
    skip = pytest.mark.skip(reason="Triton is not installed: pip install 'kullback[triton]'")
    for item in items:
        if "engines/triton" in str(item.path):
            item.add_marker(skip)
