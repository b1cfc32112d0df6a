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
from kullback.core.readings import LabelsReading, LogitsReading, Side
from kullback.divergences import CROSS_ENTROPY, HELLINGER, KL, alpha, js

SOURCE = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which("g++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (COMPILER and SOURCE.exists()), reason="needs g++ and csrc/")]

SHIM = """
#include "total.hpp"
#include "reduction.hpp"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>
using namespace kullback;
static Formula named(const char* formula) {
#define FIND(name) if (std::strcmp(formula, #name) == 0) return Formula::name;
  KULLBACK_GENERATORS(FIND)
  std::abort();
}
static Side logits(const float* x, int64_t columns, double temperature) {
  return {Reading::logits, Dtype::float32, x, {columns}, 1.0 / temperature, 0, 0, 0, 0};
}
static Job job_of(const char* formula, const double* numbers, int64_t rows, int64_t columns) {
  Job job{};
  job.formula = named(formula);
  job.parameter = numbers[0];
  job.exact_normalizer = job.formula == Formula::tv || job.formula == Formula::squared_hellinger;
  job.edges = {{numbers[1], numbers[2]}, {numbers[3], numbers[4]}, {numbers[5], numbers[6]}, numbers[7] != 0};
  job.dims = 1;
  job.shape[0] = job.num_rows = rows;
  job.num_columns = columns;
  job.scale = 1.0;
  return job;
}
extern "C" void both(const char* formula, const double* numbers, int64_t rows, int64_t columns, double temperature,
                     const float* a, const float* b, double* values, double* stats, const double* upstream,
                     float* to_p, float* to_q) {
  Job job = job_of(formula, numbers, rows, columns);
  job.sides[0] = logits(a, columns, temperature);
  job.sides[1] = logits(b, columns, temperature);
  job.values = values;
  job.stats = reinterpret_cast<Stats*>(stats);
  job.upstream = upstream;
  job.upstream_is_double = true;
  job.upstream_strides[0] = 1;
  job.gradients[0] = to_p;
  job.gradients[1] = to_q;
  std::vector<float> kept(size_t(std::max(test::kept_floats(job), kKeptFloats)));
  test::forward_rows(job, 0, rows, test::kept_floats(job) ? kept.data() : nullptr);
  test::backward_rows(job, 0, rows);
}
// formula(a, b) at a temperature, cross-entropy of labels and b, and formula(b, a) at three times it: two outputs
extern "C" void three(const char* formula, const double* numbers, const double* of_labels, int64_t rows,
                      int64_t columns, double temperature, const float* a, const float* b, const int64_t* labels,
                      double on, double off, const double* weights, double* values, float* to_a, float* to_b) {
  Stats wanted;
  Term terms[3];
  const float* x[3][2] = {{a, b}, {nullptr, b}, {b, a}};
  const int outputs[3][2] = {{0, 1}, {-1, 1}, {1, 0}};
  for (int k = 0; k < 3; ++k) {
    Job& job = terms[k].job;
    job = job_of(k == 1 ? "cross_entropy" : formula, k == 1 ? of_labels : numbers, rows, columns);
    for (int side = 0; side < 2; ++side) {
      job.sides[side] = logits(x[k][side], columns, k == 0 ? temperature : k == 1 ? 1.0 : 3.0 * temperature);
      terms[k].outputs[side] = outputs[k][side];
    }
    if (k == 1)
      job.sides[0] = {Reading::labels, Dtype::float64, labels, {1}, 1.0, on, off, std::log(on), std::log(off)};
    job.stats = &wanted;
    terms[k].weights = weights + k * rows;
    terms[k].weight_strides[0] = 1;
  }
  const Output places[2] = {{Dtype::float32, to_a}, {Dtype::float32, to_b}};
  Plan plan;
  test::plan_total({3, 2, terms, places, values}, plan);
  std::vector<float> kept(size_t(plan.kept_floats + 16));
  std::fill(values, values + 3, 0.0);
  test::total_rows(plan, 0, rows, plan.kept_floats ? kept.data() : nullptr, values);
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
    "a total forgets a weight": ("? t.weight[k] * t.value[k] : 0.0", "? t.value[k] : 0.0"),
    "a total's gradient forgets a weight": ("rows[k].upstream = t.weight[k]", "rows[k].upstream = 1.0"),
    "a total's lanes forget a weight": ("scale_of(job, 0, all.weight[k][r])", "scale_of(job, 0, 1.0)"),
    "an output written, not added": ("sum[i] += a * x[i] - c * exps[i]", "sum[i] = a * x[i] - c * exps[i]"),
    "an output of labels written, not added": ("sum[i] += c * raised<power>", "sum[i] = c * raised<power>"),
    "an output of lanes written, not added": ("+ r] += live[r] ? sent", "+ r] = live[r] ? sent"),
    "the normaliser left out of a total's gradient": ("= a * x[i] - c * exps[i]", "= a * x[i]"),
    "the normaliser left out of a total's lanes": ("* to_weight[r] * sum[r])", "* sum[r])"),
    "a total's infinite row sends a gradient": ("&& magnitude(t.value[k]) != kInf;", ";"),
    "a dropped row sends NaN": ("live[r] ? sent : 0.0f", "sent"),
    "exponentials of the other temperature": ("power == 2 ? x * x :", "power == 2 ? x :"),
    "no gradient at the label": ("under.sums[to][label - at] -=", "under.sums[to][label - at] -= 0.0f *"),
    "the mass of smoothed labels": ("(columns - 1.0) * p.off)", "columns * p.off)"),
    "scores not moved to the new maximum": ("(a.below + to_a) + (b.below + to_b)", "a.below + b.below"),
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


def pointer(x):
    return ctypes.c_void_p(x.data_ptr())


def numbers_of(total):
    f = total.generator
    edges = (f.at_p_zero, f.at_q_zero, *f.plain, *f.slopes, float(f.log_q_slope))
    return f.name.encode(), torch.tensor([f.parameter, *edges], dtype=torch.float64)


def near(got, right):
    room = 1e-5 * right.abs().amax(-1, keepdim=True).nan_to_num() + 1e-6
    return bool(((got - right).abs() <= room).all())


def agrees(faulty):
    for divergence in (KL, js(0.1), HELLINGER, alpha(0.3), CROSS_ENTROPY):
        (total,) = divergence.sums
        for a, b, temperature in rows():
            if not rows_agree(faulty, total, a, b, temperature):
                return False
            if divergence in (KL, HELLINGER) and not totals_agree(faulty, total, a, b, temperature):
                return False
    return True


def rows_agree(faulty, total, a, b, temperature):
    reading = LogitsReading(temperature)
    p, q = Side(reading, (a,)), Side(reading, (b,))
    truth = reduction.rows(total, p, q)
    upstream = torch.linspace(0.5, 1.5, a.shape[0], dtype=torch.float64)
    want = reduction.gradients(total, p, q, truth, upstream, (True, True))
    values, stats = torch.empty_like(truth), torch.empty(a.shape[0], 6, dtype=torch.float64)
    to = torch.empty_like(a), torch.empty_like(b)
    formula, constants = numbers_of(total)
    shape = ctypes.c_int64(a.shape[0]), ctypes.c_int64(a.shape[1])
    settings = formula, pointer(constants), *shape, ctypes.c_double(temperature)
    faulty.both(*settings, *map(pointer, (a, b, values, stats, upstream, *to)))
    return torch.allclose(values, truth, rtol=1e-5, atol=1e-14) and all(map(near, to, want))


def totals_agree(faulty, total, a, b, temperature):
    n, num_classes = a.shape
    a, b = a.clone(), b.clone()
    smoothing = 0.0 if bool(b.isinf().any()) else 0.1
    labels = (a.nan_to_num().argmax(-1) + 1) % num_classes
    weights = torch.linspace(0.5, -1.5, 3 * n, dtype=torch.float64).reshape(3, n)
    weights[:, 1] = 0.0
    a[1] = b[1] = math.nan  # a row that is dropped
    of_labels = LabelsReading(num_classes, smoothing)
    soft, softer, hard = LogitsReading(temperature), LogitsReading(3.0 * temperature), LogitsReading(1.0)
    terms = (
        (total, Side(soft, (a,)), Side(soft, (b,)), (0, 1)),
        (CROSS_ENTROPY.sums[0], Side(of_labels, (labels,)), Side(hard, (b,)), (-1, 1)),
        (total, Side(softer, (b,)), Side(softer, (a,)), (1, 0)),
    )
    want = [torch.zeros(n, num_classes, dtype=torch.float64) for _ in range(2)]
    truth = []
    for (each, p, q, places), w in zip(terms, weights, strict=True):
        p, q = (Side(s.reading, tuple(x.double() if x.is_floating_point() else x for x in s.data)) for s in (p, q))
        value = reduction.rows(each, p, q)
        truth.append(torch.where(w == 0, 0.0, w * value).sum())
        gradients = reduction.gradients(each, p, q, value, w, tuple(k >= 0 for k in places))
        for place, gradient in zip(places, gradients, strict=True):
            if place >= 0:
                want[place] += gradient
    values, to = torch.empty(3, dtype=torch.float64), (torch.empty_like(a), torch.empty_like(b))
    (formula, constants), (_, linear) = numbers_of(total), numbers_of(CROSS_ENTROPY.sums[0])
    on_off = map(ctypes.c_double, of_labels.on_off)
    shape = ctypes.c_int64(n), ctypes.c_int64(num_classes)
    settings = formula, pointer(constants), pointer(linear), *shape, ctypes.c_double(temperature)
    faulty.three(*settings, *map(pointer, (a, b, labels)), *on_off, *map(pointer, (weights, values, *to)))
    exact = torch.stack(truth)
    return torch.allclose(values, exact, rtol=1e-5, atol=1e-12, equal_nan=True) and all(map(near, to, want))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_catches(fault, tmp_path):
    assert agrees(library(fault, tmp_path)) == (fault == "none")
