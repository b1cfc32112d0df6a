import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kullback.distill import Settings, run

TINY = Settings(
    epochs=2, seeds=2, hidden=8, teacher_hidden=16, teacher_epochs=2, sweep=(1.0, 2.0), sweep_seeds=1, labels=12
)


def blobs(rows: int = 60, classes: int = 3) -> pl.DataFrame:
    """Well separated classes "a", "b", "c" around (3c, -3c), with a constant third feature."""
    rng = np.random.default_rng(7)
    label = np.arange(rows) % classes
    x = rng.normal(size=(rows, 2)) + 3.0 * label[:, None] * np.array([1.0, -1.0])
    return pl.DataFrame({"x": x[:, 0], "y": x[:, 1], "flat": np.ones(rows), "kind": ["abc"[c] for c in label]})


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    path = tmp_path / "blobs.csv"
    blobs().write_csv(path)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A whole run on digits, small enough for tests."""
    out = tmp_path_factory.mktemp("run") / "folder"
    return run(replace(TINY, out=out, labels=30))


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty current folder, which must not fill by accident."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert os.path.isdir(folder)
