"""Faults planted in the kernels, one line each, that a comparison with `core` must catch: a test of the tests.

Each fault is compiled from csrc/ into a library of its own, called through a few lines of C.
"""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kullback.core import reduction
from kullback.core.readings import LogitsReading
from kullback.divergences import CROSS_ENTROPY, HELLINGER, KL, alpha, js
from kullback.engines import encoding

SOURCE = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("g++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (COMPILER and SOURCE.exists()), reason="needs g++ and csrc/")]

SHIM = """
#include "reduction.hpp"
#include <algorithm>
#include <vector>
using namespace kullback;
extern "C" void both(int formula, const double* numbers, int64_t rows, int64_t columns, double temperature,
                     const float* a, const float* b, double* values, double* stats, const double* upstream,
                     float* to_p, float* to_q) {
  Job job{};
  job.formula = Formula(formula);
  job.parameter = numbers[0];
  job.exact_normalizer = job.formula == Formula::tv || job.formula == Formula::squared_hellinger;
  job.edges = {{numbers[1], numbers[2]}, {numbers[3], numbers[4]}, {numbers[5], numbers[6]}, numbers[7] != 0};
  job.dims = 1;
  job.shape[0] = job.num_rows = rows;
  job.num_columns = columns;
  for (int side = 0; side < 2; ++side) {
    job.sides[side] = {Reading::logits, Dtype::float32, side == 0 ? a : b, {columns}, 1.0 / temperature, 0, 0, 0, 0};
  }
  job.values = values;
  job.stats = reinterpret_cast<Stats*>(stats);
  job.upstream = upstream;
  job.upstream_strides[0] = 1;
  job.gradients[0] = to_p;
  job.gradients[1] = to_q;
  std::vector<float> kept(size_t(std::max(test::kept_floats(job), kKeptFloats)));
  test::forward_rows(job, 0, rows, test::kept_floats(job) ? kept.data() : nullptr);
  test::backward_rows(job, 0, rows);
}
"""

FAULTS = {
    "none": ("", ""),
    "p and q exchanged, any cells": (
        "exp_negative(log_p), exp_negative(log_q)",
        "exp_negative(log_q), exp_negative(log_p)",
    ),
    "p and q exchanged, kept exponentials": (
        "p = s.exp_a[i] * s.to_p, q = s.exp_b[i] * s.to_q",
        "q = s.exp_a[i] * s.to_p, p = s.exp_b[i] * s.to_q",
    ),
    "p and q exchanged, backward": (
        "p = exp_bounded(below_a) * s.to_p, q = exp_bounded(below_b) * s.to_q",
        "q = exp_bounded(below_a) * s.to_p, p = exp_bounded(below_b) * s.to_q",
    ),
    "p and q exchanged, lanes": ("{p, q, d, log_q}), p, q, 0}", "{q, p, d, log_q}), p, q, 0}"),
    "no rescaling to the new maximum, pieces": ("a.sum * to_a + b.sum * to_b", "a.sum + b.sum * to_b"),
    "no rescaling to the new maximum, blocks": ("sums[k] * exp((maxima[k] - base) * scale)", "sums[k]"),
    "one factor for every block": ("(double(range[k].max) - max) * scale - log_sum", "-log_sum"),
    "the mask forgotten": ("c.p, c.q, !(magnitude(c.d) < float(g.reach))", "c.p, c.q, 0"),
    "every block is safe": ("return low_p > faintest &&", "return true || low_p > faintest &&"),
    "the normaliser left out of the gradient": ("cell.f.dlogq - cell.q * sum_q", "cell.f.dlogq"),
    "the temperature left out of the gradient": ("? upstream * job.sides[side].inverse_temperature", "? upstream"),
    "the temperature left out of the exponentials": (
        "(widen(x[i]) - max) * high + (widen(x[i]) - max) * low",
        "widen(x[i]) - max",
    ),
    "no compensation": ("(lost - shift_low)", "(0.0f - shift_low)"),
    "mass without q taken as mass without p": ("e.at_zero[1] * p", "e.at_zero[0] * p"),
    "an infinite row sends a gradient": ("magnitude(value) == kInf || upstream == 0.0", "upstream == 0.0"),
    "a coefficient": ("0x1.55557cp-3f", "0x1.56557cp-3f"),
    "the last columns dropped": ("? from + count - at : kBlock)", "? 0 : kBlock)"),
    "the sides of a lane exchanged": ("scales[0][r] * (cell.f.dlogp", "scales[0][r] * (cell.f.dlogq"),
    "a lane's neighbour": ("(b - t.max[1][r]) * scale", "(b - t.max[1][(r + 1) % kLanes]) * scale"),
    "p_gone forgotten": ("{{edge ? p_gone + q_gone", "{{edge ? q_gone"),
}


def library(fault, folder):
    old, new = FAULTS[fault]
    hits = 0
    for path in SOURCE.glob("*.hpp"):
        text = path.read_text()
        hits += text.count(old) if old else 1
        (folder / path.name).write_text(text.replace(old, new) if old else text)
    assert hits, f"the line of {fault!r} is no longer in csrc/"
    (folder / "shim.cpp").write_text(SHIM)
    out = folder / "faulty.so"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-DKULLBACK_ISA=test"]
    subprocess.run([COMPILER, *flags, "-w", str(folder / "shim.cpp"), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


def rows():
    g = torch.Generator().manual_seed(0)
    near = torch.randn(4, 700, generator=g)
    yield near, near + 0.2 * torch.randn(4, 700, generator=g), 1.0
    yield near, near + 3e-5 * torch.randn(4, 700, generator=g) - 1000.0, 1.0
    rising = torch.linspace(-20, 5, 1500).expand(2, -1).contiguous()
    yield rising, rising.flip(-1).contiguous() / 3, 2.0
    yield 6 * rising, 5 * rising, 1.0  # weights below e^-80
    long = torch.linspace(0, 12, 20_000).expand(2, -1).contiguous()
    yield long, long.flip(-1).contiguous() / 4, 1.0
    a, b = torch.randn(3, 40, generator=g), torch.randn(3, 40, generator=g)
    a[:2, 3] = b[1:, 7] = -math.inf
    yield a, b, 1.0
    yield torch.randn(20, 10, generator=g), torch.randn(20, 10, generator=g), 0.5


def agrees(faulty):
    pointer = lambda x: ctypes.c_void_p(x.data_ptr())  # noqa: E731
    for divergence in (KL, js(0.1), HELLINGER, alpha(0.3), CROSS_ENTROPY):
        total = divergence.sums[0]
        for a, b, temperature in rows():
            reading = LogitsReading(temperature)
            codes, numbers = encoding.encode(total, reading, reading)
            truth = reduction.rows(total, reading, reading, a, b)
            upstream = torch.linspace(0.5, 1.5, a.shape[0], dtype=torch.float64)
            want = reduction.gradients(total, reading, reading, a, b, truth, upstream, (True, True))
            values, stats = torch.empty_like(truth), torch.empty(a.shape[0], 6, dtype=torch.float64)
            to = torch.empty_like(a), torch.empty_like(b)
            constants = torch.tensor(numbers[:8], dtype=torch.float64)
            shape = ctypes.c_int64(a.shape[0]), ctypes.c_int64(a.shape[1])
            settings = ctypes.c_int(codes[0]), pointer(constants), *shape, ctypes.c_double(temperature)
            faulty.both(*settings, *map(pointer, (a, b, values, stats, upstream, *to)))
            if not torch.allclose(values, truth, rtol=1e-5, atol=1e-14):
                return False
            for got, right in zip(to, want, strict=True):
                room = 1e-5 * right.abs().amax(-1, keepdim=True).nan_to_num() + 1e-6
                if not ((got - right).abs() <= room).all():
                    return False
    return True


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(fault, tmp_path):
    assert agrees(library(fault, tmp_path)) == (fault == "none")
