"""The kernels compile ahead of time, without a GPU, for every named target, and spill no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kullback.core.generators import NAMED

pytest.importorskip("triton", reason="Triton is not installed: pip install 'kullback[triton]'")

SCRIPT = Path(__file__).parents[3] / "bench" / "triton_compile.py"


def compiled(*arguments):
    # interpreting and compiling exclude each other within a process
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["kernels"]


def assert_fits(kernels):
    """No spills; four programs of four warps to a multiprocessor; no float32 on the way of a float64."""
    assert [k for k in kernels if k["spills"]] == []
    assert [k for k in kernels if k["target"].startswith("sm") and k["registers"] * k["warps"] * 32 * 4 > 65_536] == []
    assert [k for k in kernels if k["dtype"] == "float64" and k["float32"]] == []
    assert any(k["dtype"] == "float64" for k in kernels)
    assert all(k["float32"] for k in kernels if k["dtype"] == "bfloat16" and k["formula"] == "kl")  # it does count


def test_kl_for_every_target():
    kernels = compiled("--quick")
    assert {(k["target"], k["kernel"]) for k in kernels} == {
        (target, kernel) for target in ("sm_80", "sm_90", "gfx942") for kernel in ("forward", "backward")
    }
    assert_fits(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_generator_and_reading(target):
    kernels = compiled("--targets", target)
    assert {k["formula"].partition("(")[0] for k in kernels} == {
        *NAMED,
        "log_affinity",
    }  # fmt: skip
    assert_fits(kernels)
