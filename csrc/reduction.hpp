// core/normalizer.py, core/readings.py and core/reduction.py, transcribed as loops over blocks that stay in L1.
//
// A block is `kBlock` cells of one row (or, where rows are short, some columns of many rows side by side). Inputs of
// 32 bits or fewer are computed in single precision, except log Z, sums over blocks, and d = log q - log p, which is
// double or, for two rows of logits, a compensated difference; a block that leaves the range where that is safe (a cell
// without mass, NaN, an overflow) is redone in double, with the meaning of edges exactly as in core. float64 inputs are
// double throughout.
#pragma once

#include "short_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

static int64_t rows_together(const Job& job) { return side_by_side(job) ? kLanes : 1; }

// `kept`: room for `kept_floats`, or null.
static void forward_rows(const Job& job, int64_t first, int64_t last, float* kept) {
  if (side_by_side(job)) {
    for (int64_t row = first; row < last; row += kLanes)
      forward_lanes(job, row, int(last - row < kLanes ? last - row : kLanes));
    return;
  }
  for (int64_t row = first; row < last; ++row) forward_long_row(job, row, kept);
}

static void backward_rows(const Job& job, int64_t first, int64_t last) {
  if (side_by_side(job)) {
    for (int64_t row = first; row < last; row += kLanes)
      backward_lanes(job, row, int(last - row < kLanes ? last - row : kLanes));
    return;
  }
  for (int64_t row = first; row < last; ++row) backward_columns(job, row, 0, job.num_columns);
}

template <class T>
static void apply(int which, const T* x, T* out, int64_t n) {
  switch (which) {
    case 0:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = exp(x[i]);
      return;
    case 1:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = log(x[i]);
      return;
    case 2:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = log1p(x[i]);
      return;
    default:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = expm1(x[i]);
  }
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
