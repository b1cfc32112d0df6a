// Weighted sums over the rows of several terms, with their gradients, in one pass over the rows.
#pragma once

#include "short_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

KULLBACK_INLINE double weight_of(const Term& term, int64_t row) {
  return term.weights[offset_of(term.job, term.weight_strides, row)];
}

// Whether a term's row sends a gradient anywhere.
KULLBACK_INLINE bool sends(const Term& term, double weight, double value) {
  return weight != 0.0 && magnitude(value) != kInf && (term.outputs[0] >= 0 || term.outputs[1] >= 0);
}

// Adds the gradients of n <= kBlock cells of one term's row to `sums`, an array for each output.
template <class T>
static void add_gradients(const Term& term, const Row& r, int64_t from, int n, bool wide, T* const* sums) {
  const Job& job = term.job;
  alignas(64) float narrow[2][kBlock];
  float* to[2];
  for (int side = 0; side < 2; ++side) to[side] = term.outputs[side] < 0 ? nullptr : narrow[side];
  Block<float> b;
  if (!wide && gradients_in_single(job, r, from, n, to, b)) {
    for (int side = 0; side < 2; ++side) {
      if (to[side] == nullptr) continue;
      T* sum = sums[term.outputs[side]];
#pragma omp simd
      for (int i = 0; i < n; ++i) sum[i] += T(narrow[side][i]);
    }
    return;
  }
  alignas(64) double room[2][kBlock];
  double* const in_double[2] = {to[0] == nullptr ? nullptr : room[0], to[1] == nullptr ? nullptr : room[1]};
  gradients_in_double(job, r, from, n, in_double);
  for (int side = 0; side < 2; ++side) {
    if (to[side] == nullptr) continue;
    T* sum = sums[term.outputs[side]];
#pragma omp simd
    for (int i = 0; i < n; ++i) sum[i] += T(room[side][i]);
  }
}

// Outputs of one width: float64 is added in double, all others in single precision.
template <class T>
static void total_gradients(const Total& total, const TotalRow& t, int64_t row, int64_t from, int64_t count) {
  constexpr bool is_double = Same<T, double>::value;
  bool any = false;
  for (int k = 0; k < total.num_outputs; ++k) any |= (total.outputs[k].dtype == Dtype::float64) == is_double;
  if (!any) return;
  Row rows[kMaxTerms];
  bool wide[kMaxTerms], live[kMaxTerms];
  for (int k = 0; k < total.num_terms; ++k) {
    const Term& term = total.terms[k];
    live[k] = sends(term, t.weight[k], t.value[k]);
    if (!live[k]) continue;
    rows[k] = find_row(term.job, row, t.stats[k]);
    rows[k].value = t.value[k];
    rows[k].upstream = t.weight[k];
    wide[k] = wide_gradients(term.job, rows[k]);
  }
  alignas(64) T room[kMaxOutputs][kBlock];
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    T* sums[kMaxOutputs];
    for (int k = 0; k < total.num_outputs; ++k) {
      sums[k] = room[k];
      for (int i = 0; i < n; ++i) room[k][i] = T(0);
    }
    for (int k = 0; k < total.num_terms; ++k)
      if (live[k]) add_gradients(total.terms[k], rows[k], at, n, wide[k], sums);
    const int64_t columns = total.terms[0].job.num_columns;
    for (int k = 0; k < total.num_outputs; ++k) {
      const Output& out = total.outputs[k];
      if ((out.dtype == Dtype::float64) != is_double) continue;
      store<T>(out.dtype, static_cast<char*>(out.data) + size_of(out.dtype) * row * columns, at, n, room[k]);
    }
  }
}

static void total_gradient_piece(const Total& total, const TotalRow& t, int64_t row, int64_t piece) {
  const int64_t from = piece * kPiece, count = piece_size(total.terms[0].job, piece);
  total_gradients<float>(total, t, row, from, count);
  total_gradients<double>(total, t, row, from, count);
}

static void total_rows(const Total& total, int64_t first, int64_t last, float* kept, double* sums) {
  const int64_t pieces = pieces_of(total.terms[0].job);
  for (int64_t row = first; row < last; ++row) {
    TotalRow t;
    for (int k = 0; k < total.num_terms; ++k) {
      t.weight[k] = weight_of(total.terms[k], row);
      t.value[k] = 0.0;
      if (t.weight[k] == 0.0) continue;
      const Job& job = total.terms[k].job;
      t.value[k] = sum_row(job, row, kept_floats(job) > 0 ? kept : nullptr, t.stats[k]);
      sums[k] += t.weight[k] * t.value[k];
    }
    if (total.num_outputs > 0)
      for (int64_t piece = 0; piece < pieces; ++piece) total_gradient_piece(total, t, row, piece);
  }
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
