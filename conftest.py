"""Names that every docstring example may use without importing them."""

import pytest
import torch

import kullback

collect_ignore_glob = ["src/kullback/engines/triton/*"]  # kernels hold no examples, and their import fixes how they run


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update({name: getattr(kullback, name) for name in kullback.__all__}, torch=torch)
