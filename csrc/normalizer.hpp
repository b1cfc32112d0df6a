// core/normalizer.py, transcribed: stage one, (max, Σ exp) of a row.
#pragma once

#include "rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

constexpr int kBlock = 512;     // cells that stay in L1, with what is computed of them
constexpr float kSafe = 1e30f;  // magnitudes that single precision multiplies without care

// (m, Σ exp(x - m)) of the scores seen so far, x before temperature; an empty one is (-inf, 0).
struct Normalizer {
  double max, sum;
};

KULLBACK_INLINE double finite(double m) { return m == -kInf ? 0.0 : m; }

KULLBACK_INLINE Normalizer merge(Normalizer a, Normalizer b, double scale) {
  if (a.sum == 0.0) return b;
  if (b.sum == 0.0) return a;
  const double m = a.max > b.max ? a.max : b.max, base = finite(m);
  const double to_a = a.max == m ? 1.0 : exp((a.max - base) * scale),
               to_b = b.max == m ? 1.0 : exp((b.max - base) * scale);
  return {m, a.sum * to_a + b.sum * to_b};
}

// `exps`, where it is given, gets the terms of the sum.
template <class T>
static Normalizer normalize_block(const T* x, int n, double scale, T* exps = nullptr) {
  T m = T(-kInf);
#pragma omp simd reduction(max : m)
  for (int i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  const T base = m == T(-kInf) ? T(0) : m;
  double sum = 0.0;  // an error here is δ of every term, however few lanes there are to share it
  if (scale == 1.0) {
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += double(exp_negative(x[i] - base));
  } else {
    const T high = T(scale), low = T(scale - double(high)), far = T(-kSafe);  // -inf·low would be NaN or +inf
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) {
      const T below = x[i] - base, t = below < far ? far : below;
      sum += double(exp_negative(t * high + t * low));
    }
  }
  if (exps != nullptr) {
    const T high = T(scale), low = T(scale - double(high)), far = T(-kSafe);
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const T below = x[i] - base, t = below < far ? far : below;
      exps[i] = exp_negative(t * high + t * low);
    }
  }
  return {double(m), sum};
}

template <class T>
static Normalizer normalize(const Side& s, const void* row, int64_t from, int64_t count) {
  alignas(64) T room[kBlock];
  Normalizer all = {-kInf, 0.0};
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    all = merge(all, normalize_block(load<T>(s.dtype, row, at, n, room), n, s.inverse_temperature),
                s.inverse_temperature);
  }
  return all;
}

static Normalizer normalize_side(const Job& job, int side, const void* row, int64_t from, int64_t count) {
  const Side& s = job.sides[side];
  if (s.reading != Reading::logits) return {0.0, 0.0};
  if (double_throughout(job) || job.exact_normalizer) return normalize<double>(s, row, from, count);
  return normalize<float>(s, row, from, count);
}

KULLBACK_INLINE void finish_normalizer(Normalizer z, Stats& stats) {
  stats.max = z.max;
  stats.log_sum = (z.max == -kInf || z.max == kInf) ? __builtin_nan("") : log(z.sum);
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
