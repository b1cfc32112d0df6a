"""Names that every docstring example may use without importing them."""

import pytest
import torch

import kullback


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update({name: getattr(kullback, name) for name in kullback.__all__}, torch=torch)
