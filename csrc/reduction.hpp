// core/normalizer.py, core/readings.py and core/reduction.py, transcribed as loops over blocks that stay in L1.
//
// A block is `kBlock` cells of one row (or, where rows are short, some columns of many rows side by side). Inputs of
// 32 bits or fewer are computed in single precision, except log w, log Z, d = log q - log p and all sums, which are
// double; a block that leaves the range where that is safe (an edge without mass, NaN, an overflow) is redone in double,
// with the meaning of edges exactly as in core. float64 inputs are double throughout.
#pragma once

#include "generators.hpp"
#include "job.hpp"

namespace kullback {
namespace KULLBACK_ISA {

constexpr int kBlock = 512;
constexpr float kSafe = 1e30f;  // magnitudes that single precision multiplies without care

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

// ---------------------------------------------------------------- dtypes

KULLBACK_INLINE float widen_half(uint16_t half) {
  const uint32_t magnitude_bits = (uint32_t(half) & 0x7fffu) << 13;
  const uint32_t sign = (uint32_t(half) & 0x8000u) << 16;
  const bool special = magnitude_bits >= (0x7c00u << 13);
  const uint32_t wide = special ? (magnitude_bits | 0x7f800000u) : bits_of(real_of(magnitude_bits) * 0x1p112f);
  return real_of(wide | sign);
}

KULLBACK_INLINE uint16_t narrow_half(float x) {
  const uint32_t all = bits_of(x), sign = (all >> 16) & 0x8000u, m = all & 0x7fffffffu;
  const uint32_t normal = (m - (112u << 23) + 0xfffu + ((m >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits_of(real_of(m) + 0.5f) - bits_of(0.5f);  // the addition rounds at 2^-24
  const uint32_t half = m > 0x7f800000u ? 0x7e00u : m >= 0x477ff000u ? 0x7c00u : m < (113u << 23) ? subnormal : normal;
  return uint16_t(half | sign);
}

KULLBACK_INLINE float widen_bfloat16(uint16_t x) { return real_of(uint32_t(x) << 16); }

KULLBACK_INLINE uint16_t narrow_bfloat16(float x) {
  const uint32_t all = bits_of(x);
  const uint32_t rounded = (all + 0x7fffu + ((all >> 16) & 1u)) >> 16;
  return uint16_t((all & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The cells [from, from + n) of a row, as T: in place where the row already holds T, else converted into `room`.
template <class T>
static const T* load(Dtype dtype, const void* row, int64_t from, int n, T* room) {
  switch (dtype) {
    case Dtype::float64: {
      const double* x = static_cast<const double*>(row) + from;
      if constexpr (Same<T, double>::value) {
        return x;
      } else {
        for (int i = 0; i < n; ++i) room[i] = T(x[i]);
        return room;
      }
    }
    case Dtype::float32: {
      const float* x = static_cast<const float*>(row) + from;
      if constexpr (Same<T, float>::value) {
        return x;
      } else {
#pragma omp simd
        for (int i = 0; i < n; ++i) room[i] = T(x[i]);
        return room;
      }
    }
    case Dtype::bfloat16: {
      const uint16_t* x = static_cast<const uint16_t*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) room[i] = T(widen_bfloat16(x[i]));
      return room;
    }
    default: {
      const uint16_t* x = static_cast<const uint16_t*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) room[i] = T(widen_half(x[i]));
      return room;
    }
  }
}

template <class T>
static void store(Dtype dtype, void* row, int64_t from, int n, const T* values) {
  switch (dtype) {
    case Dtype::float64: {
      double* out = static_cast<double*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = double(values[i]);
      return;
    }
    case Dtype::float32: {
      float* out = static_cast<float*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = float(values[i]);
      return;
    }
    case Dtype::bfloat16: {
      uint16_t* out = static_cast<uint16_t*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = narrow_bfloat16(float(values[i]));
      return;
    }
    default: {
      uint16_t* out = static_cast<uint16_t*>(row) + from;
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = narrow_half(float(values[i]));
    }
  }
}

KULLBACK_INLINE int64_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

KULLBACK_INLINE int64_t offset_of(const Job& job, const int64_t* strides, int64_t row) {
  if (job.dims == 1) return row * strides[0];
  int64_t offset = 0;
  for (int axis = job.dims - 1; axis >= 0; --axis) {
    offset += (row % job.shape[axis]) * strides[axis];
    row /= job.shape[axis];
  }
  return offset;
}

KULLBACK_INLINE const void* row_of(const Job& job, int side, int64_t row) {
  const Side& s = job.sides[side];
  const int64_t bytes = s.reading == Reading::labels ? 8 : size_of(s.dtype);
  return static_cast<const char*>(s.data) + bytes * offset_of(job, s.strides, row);
}

KULLBACK_INLINE bool logits_at_one_temperature(const Job& job) {
  return job.sides[0].reading == Reading::logits && job.sides[1].reading == Reading::logits &&
         job.sides[0].inverse_temperature == job.sides[1].inverse_temperature;
}

KULLBACK_INLINE bool double_throughout(const Job& job) {
  for (int side = 0; side < 2; ++side) {
    const Side& s = job.sides[side];
    if (s.reading != Reading::labels && s.dtype == Dtype::float64) return true;
  }
  return job.formula == Formula::log_affinity ||
         (job.sides[0].reading == Reading::labels && job.sides[1].reading == Reading::labels);
}

// ---------------------------------------------------------------- stage one: normalisers

// (m, Σ exp(x - m)) of the scores seen so far, x before temperature; an empty one is (-inf, 0).
struct Normalizer {
  double max, sum;
};

KULLBACK_INLINE double finite(double m) { return m == -kInf ? 0.0 : m; }

KULLBACK_INLINE Normalizer merge(Normalizer a, Normalizer b, double scale) {
  const double m = a.max > b.max ? a.max : b.max, base = finite(m);
  const double to_a = a.max == m ? 1.0 : exp((a.max - base) * scale), to_b = b.max == m ? 1.0 : exp((b.max - base) * scale);
  return {m, (a.sum == 0.0 ? 0.0 : a.sum * to_a) + (b.sum == 0.0 ? 0.0 : b.sum * to_b)};
}

template <class T>
static Normalizer normalize_block(const T* x, int n, double scale) {
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
  return {double(m), sum};
}

template <class T>
static Normalizer normalize(const Side& s, const void* row, int64_t from, int64_t count) {
  alignas(64) T room[kBlock];
  Normalizer all = {-kInf, 0.0};
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    all = merge(all, normalize_block(load<T>(s.dtype, row, at, n, room), n, s.inverse_temperature), s.inverse_temperature);
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

// ---------------------------------------------------------------- readings

// What a block is, as far as single precision goes.
enum class Kind { both, p_gone, q_gone, redo };

// log w and w of n cells of one row. False where single precision must not go on.
template <class T>
static bool weigh(const Side& s, const void* row, int64_t label, int64_t from, int n, const Stats& stats, T* room, double* log_w,
                  T* w) {
  switch (s.reading) {
    case Reading::logits: {
      const T* x = load<T>(s.dtype, row, from, n, room);
      const double m = stats.max, scale = s.inverse_temperature, log_sum = stats.log_sum;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const double l = (double(x[i]) - m) * scale - log_sum;
        log_w[i] = l;
        w[i] = exp_with_subnormals(T(l));
      }
      return true;
    }
    case Reading::log_probs: {
      const T* x = load<T>(s.dtype, row, from, n, room);
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        log_w[i] = double(x[i]);
        w[i] = Same<T, double>::value ? T(exp_with_subnormals(x[i])) : exp(x[i]);
      }
      return true;
    }
    case Reading::probs: {
      const T* x = load<T>(s.dtype, row, from, n, room);
      int outside = 0;
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        log_w[i] = log(double(x[i]));
        w[i] = x[i];
      }
#pragma omp simd reduction(| : outside)
      for (int i = 0; i < n; ++i) outside |= !(x[i] > T(1) / T(kSafe));
      return outside == 0;
    }
    default: {
      const double l = s.log_off;
      const T off = T(s.off);
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        log_w[i] = l;
        w[i] = off;
      }
      if (label >= from && label < from + n) {
        log_w[label - from] = s.log_on;
        w[label - from] = T(s.on);
      }
      return s.off == 0.0 || s.off > 1e-30;
    }
  }
}

KULLBACK_INLINE bool gone(const Side& s, int64_t label, int64_t from, int n) {
  return s.reading == Reading::labels && s.off == 0.0 && !(label >= from && label < from + n);
}

// One side's gradient from its x = ∂f/∂log w: core's `pull_back`, times `scale` (upstream over temperature).
// `other` is log of the other side's weight; only edges look at it.
template <class T>
static void pull_back(const Job& job, int side, int n, double scale_d, double sum_x_d, const T* w, const double* other, const T* x,
                      T* out) {
  const T scale = T(scale_d), sum_x = T(sum_x_d), plain = T(job.edges.plain[side]);
  switch (job.sides[side].reading) {
    case Reading::logits:
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = scale * (x[i] - w[i] * sum_x);
      return;
    case Reading::log_probs:
#pragma omp simd
      for (int i = 0; i < n; ++i) out[i] = scale * (x[i] - plain * w[i]);
      return;
    default:
      if constexpr (Same<T, double>::value) {
        const double slope = job.edges.slopes[side], slope_of_log = side == 0 && job.edges.log_q_slope ? -1.0 : 0.0;
#pragma omp simd
        for (int i = 0; i < n; ++i) {
          const bool zero = w[i] == 0.0, alone = other[i] == -kInf;
          const double at_zero = alone ? 0.0 : slope_of_log != 0.0 ? slope_of_log * other[i] : slope;
          out[i] = scale * (zero ? at_zero : x[i] / (zero ? 1.0 : w[i]) - plain);
        }
      } else {
#pragma omp simd
        for (int i = 0; i < n; ++i) out[i] = scale * (x[i] / w[i] - plain);
      }
  }
}

// ---------------------------------------------------------------- stage two: the terms of a block

template <class T>
struct Block {
  alignas(64) double log_w[2][kBlock];
  alignas(64) T w[2][kBlock];
  alignas(64) T value[kBlock];
  alignas(64) T x[2][kBlock];
  alignas(64) T room[kBlock];
};

struct Sums {
  double value, x[2];
};

// Where the cells of a block come from: the terms of cell i, and whether it is outside of what single precision holds.
template <class T>
struct Seen {
  Terms<T> f;
  T p, q;
  int outside;
};

// core/reduction.py: `_terms`. Single precision knows no edges: a cell that has one is outside, by its infinite d.
template <class T>
struct FromWeights {
  const double *log_p, *log_q;
  const T *p, *q;

  explicit FromWeights(const Block<T>& b) : log_p(b.log_w[0]), log_q(b.log_w[1]), p(b.w[0]), q(b.w[1]) {}

  template <class G>
  KULLBACK_INLINE Seen<T> terms(const G& g, const Edges& e, const FromWeights& s, int i) {
    if constexpr (Same<T, float>::value) {
      const float d = float(s.log_q[i] - s.log_p[i]);
      return {G::template at<float>(g, {s.p[i], s.q[i], d, float(s.log_q[i])}), s.p[i], s.q[i],
              !(magnitude(d) < float(g.reach))};
    } else {
      const double log_p = s.log_p[i], log_q = s.log_q[i], p = s.p[i], q = s.q[i];
      const bool no_p = log_p == -kInf, no_q = log_q == -kInf, edge = no_p | no_q;
      const Terms<double> inside =
          G::template at<double>(g, {edge ? 1.0 : p, edge ? 1.0 : q, edge ? 0.0 : log_q - log_p, edge ? 0.0 : log_q});
      const double p_gone = (no_p & !no_q) ? (e.at_zero[0] == kInf ? kInf : e.at_zero[0] * q) : 0.0;
      const double q_gone = (no_q & !no_p) ? (e.at_zero[1] == kInf ? kInf : e.at_zero[1] * p) : 0.0;
      return {{edge ? p_gone + q_gone : inside.value, edge ? (q_gone == kInf ? 0.0 : q_gone) : inside.dlogp,
               edge ? (p_gone == kInf ? 0.0 : p_gone) : inside.dlogq},
              p,
              q,
              0};
    }
  }
};

// d = ((b - a) - (log Z_b - log Z_a)) / temperature by a compensated subtraction, so that a common offset costs nothing.
KULLBACK_INLINE Cells<float> cells_of_logits(float a, float b, float max_a, float max_b, float log_sum_a, float log_sum_b,
                                             float shift_high, float shift_low, float scale) {
  const float log_p = (a - max_a) * scale - log_sum_a, log_q = (b - max_b) * scale - log_sum_b;
  const float difference = b - a, moved = difference - b;
  const float lost = (b - (difference - moved)) - (a + moved);  // what rounding b - a lost, exactly
  const float d = ((difference - shift_high) + (lost - shift_low)) * scale;
  return {exp_negative(log_p), exp_negative(log_q), d, log_q};
}

// log Z_b - log Z_a, before temperature.
KULLBACK_INLINE double shift_of(const Job& job, const Stats* stats) {
  return (stats[1].max - stats[0].max) + (stats[1].log_sum - stats[0].log_sum) / job.sides[0].inverse_temperature;
}

// Two rows of logits at one temperature, in single precision: the pair that large vocabularies are made of, in one go.
struct FromLogits {
  const float *a, *b;
  float max_a, max_b, log_sum_a, log_sum_b, scale, shift_high, shift_low;

  FromLogits(const Job& job, const float* a_, const float* b_, const Stats* stats) : a(a_), b(b_) {
    max_a = float(stats[0].max), max_b = float(stats[1].max);
    log_sum_a = float(stats[0].log_sum), log_sum_b = float(stats[1].log_sum);
    scale = float(job.sides[0].inverse_temperature);
    const double shift = shift_of(job, stats);
    shift_high = float(shift);
    shift_low = float(shift - double(shift_high));
  }

  template <class G>
  KULLBACK_INLINE Seen<float> terms(const G& g, const Edges&, const FromLogits& s, int i) {
    const Cells<float> c = cells_of_logits(s.a[i], s.b[i], s.max_a, s.max_b, s.log_sum_a, s.log_sum_b, s.shift_high, s.shift_low, s.scale);
    return {G::template at<float>(g, c), c.p, c.q, !(magnitude(c.d) < float(g.reach))};
  }
};

// False where a cell was outside; the sums are then left alone. `values_only` does without the two sums of x.
template <bool values_only, class T, class G, class Source>
static bool sum_terms(const G& generator, const Edges& all_edges, int n, const Source& where, Sums& sums, T) {
  const G g = generator;  // copies that the loop's stores cannot alias
  const Edges edges = all_edges;
  const Source source = where;
  T value = T(0), x_p = T(0), x_q = T(0);
  int outside = 0;
#pragma omp simd reduction(+ : value, x_p, x_q) reduction(| : outside)
  for (int i = 0; i < n; ++i) {
    const Seen<T> cell = Source::template terms<G>(g, edges, source, i);
    const Terms<T> f = cell.f;
    outside |= cell.outside;
    value += f.value;
    if constexpr (!values_only) {
      x_p += f.dlogp;
      x_q += f.dlogq;
    }
  }
  if (Same<T, float>::value && outside) return false;
  sums.value += double(value);
  sums.x[0] += double(x_p);
  sums.x[1] += double(x_q);
  return true;
}

template <class T, class G, class Source>
static bool write_terms(const G& generator, const Edges& all_edges, int n, const Source& where, T* value, T* x_p, T* x_q) {
  const G g = generator;
  const Edges edges = all_edges;
  const Source source = where;
  int outside = 0;
#pragma omp simd reduction(| : outside)
  for (int i = 0; i < n; ++i) {
    const Seen<T> cell = Source::template terms<G>(g, edges, source, i);
    const Terms<T> f = cell.f;
    outside |= cell.outside;
    value[i] = f.value;
    x_p[i] = f.dlogp;
    x_q[i] = f.dlogq;
  }
  return !(Same<T, float>::value && outside);
}

// Both stages of the backward pass of two rows of logits in one go: `sides` is 1 for p, 2 for q, 3 for both.
template <int sides, class G>
static bool write_gradients_of_logits(const G& generator, int n, const FromLogits& where, const float* scale, const float* sum_x,
                                      float* __restrict to_p, float* __restrict to_q) {
  const G g = generator;
  const FromLogits source = where;
  const Edges none{};
  int outside = 0;
  const float scale_p = scale[0], scale_q = scale[1], sum_p = sum_x[0], sum_q = sum_x[1];
#pragma omp simd reduction(| : outside)
  for (int i = 0; i < n; ++i) {
    const Seen<float> cell = FromLogits::terms<G>(g, none, source, i);
    outside |= cell.outside;
    if constexpr (sides & 1) to_p[i] = scale_p * (cell.f.dlogp - cell.p * sum_p);
    if constexpr (sides & 2) to_q[i] = scale_q * (cell.f.dlogq - cell.q * sum_q);
  }
  return !outside;
}

// Calls `act` with the generator that the job names.
template <class Act>
KULLBACK_INLINE bool with_generator(const Job& job, Act act) {
  switch (job.formula) {
    case Formula::kl: return act(kl{});
    case Formula::reverse_kl: return act(reverse_kl{});
    case Formula::jeffreys: return act(jeffreys{});
    case Formula::js: return act(js(job.parameter));
    case Formula::alpha:
      return job.parameter >= 0.5 ? act(alpha<false>(job.parameter)) : act(alpha<true>(job.parameter));
    case Formula::tv: return act(tv{});
    case Formula::squared_hellinger: return act(squared_hellinger{});
    case Formula::chi2: return act(chi2{});
    case Formula::cross_entropy: return act(cross_entropy{});
    default: return act(nothing{});
  }
}

template <class T, class Source>
static bool sum_formula(const Job& job, int n, const Source& source, Sums& sums) {
  return with_generator(job, [&](const auto& g) __attribute__((always_inline)) {
    return job.stats == nullptr ? sum_terms<true>(g, job.edges, n, source, sums, T())
                                : sum_terms<false>(g, job.edges, n, source, sums, T());
  });
}

template <class T>
static bool write_formula(const Job& job, int n, Block<T>& b) {
  const FromWeights<T> source(b);
  return with_generator(job, [&](const auto& g) __attribute__((always_inline)) {
    return write_terms<T>(g, job.edges, n, source, b.value, b.x[0], b.x[1]);
  });
}

static bool write_formula_of_logits(const Job& job, int n, const FromLogits& source, const float* scale, const float* sum_x,
                                    float* to_p, float* to_q) {
  return with_generator(job, [&](const auto& g) __attribute__((always_inline)) {
    return to_q == nullptr   ? write_gradients_of_logits<1>(g, n, source, scale, sum_x, to_p, to_q)
           : to_p == nullptr ? write_gradients_of_logits<2>(g, n, source, scale, sum_x, to_p, to_q)
                             : write_gradients_of_logits<3>(g, n, source, scale, sum_x, to_p, to_q);
  });
}

// log_affinity's scores a log p + (1-a) log q, -inf or +inf where one side has no mass.
static void affinity_scores(double a, int n, const double* log_p, const double* log_q, double* scores) {
  const double p_gone = a >= 0.0 ? -kInf : kInf, q_gone = a <= 1.0 ? -kInf : kInf;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const bool no_p = log_p[i] == -kInf, no_q = log_q[i] == -kInf;
    const double edge = (no_p & no_q) ? -kInf : no_p ? p_gone : q_gone;
    const double inside = a * (no_p ? 0.0 : log_p[i]) + (1.0 - a) * (no_q ? 0.0 : log_q[i]);
    scores[i] = (no_p | no_q) ? edge : inside;
  }
}

// ---------------------------------------------------------------- long rows

struct Row {
  const void* data[2];
  int64_t label[2];
  const Stats* stats;
  double value, upstream;
};

KULLBACK_INLINE Row find_row(const Job& job, int64_t row, const Stats* stats) {
  Row r;
  for (int side = 0; side < 2; ++side) {
    r.data[side] = row_of(job, side, row);
    r.label[side] = job.sides[side].reading == Reading::labels ? *static_cast<const int64_t*>(r.data[side]) : -1;
  }
  r.stats = stats;
  r.value = r.upstream = 0.0;
  return r;
}

// Weights of both sides of one block in single precision, and what may be done with them.
static Kind weigh_block(const Job& job, const Row& r, int64_t from, int n, Block<float>& b) {
  const bool no_p = gone(job.sides[0], r.label[0], from, n), no_q = gone(job.sides[1], r.label[1], from, n);
  if ((no_p && job.edges.at_zero[0] == kInf) || (no_q && job.edges.at_zero[1] == kInf)) return Kind::redo;
  bool fine = true;
  for (int side = 0; side < 2; ++side)
    if (side == 0 ? !no_p : !no_q)
      fine &= weigh<float>(job.sides[side], r.data[side], r.label[side], from, n, r.stats[side], b.room, b.log_w[side], b.w[side]);
  return !fine ? Kind::redo : no_p ? Kind::p_gone : no_q ? Kind::q_gone : Kind::both;
}

static void weigh_block(const Job& job, const Row& r, int64_t from, int n, Block<double>& b) {
  for (int side = 0; side < 2; ++side)
    weigh<double>(job.sides[side], r.data[side], r.label[side], from, n, r.stats[side], b.room, b.log_w[side], b.w[side]);
}

static void sum_block_in_double(const Job& job, const Row& r, int64_t from, int n, Sums& sums) {
  Block<double> b;
  weigh_block(job, r, from, n, b);
  sum_formula<double>(job, n, FromWeights<double>(b), sums);
}

static bool sum_block_in_single(const Job& job, const Row& r, int64_t from, int n, Sums& sums, Block<float>& b) {
  if (logits_at_one_temperature(job)) {
    const float* x = load<float>(job.sides[0].dtype, r.data[0], from, n, b.w[0]);
    const float* y = load<float>(job.sides[1].dtype, r.data[1], from, n, b.w[1]);
    return sum_formula<float>(job, n, FromLogits(job, x, y, r.stats), sums);
  }
  const Kind kind = weigh_block(job, r, from, n, b);
  if (kind == Kind::redo) return false;
  if (kind == Kind::both) return sum_formula<float>(job, n, FromWeights<float>(b), sums);
  const int there = kind == Kind::p_gone ? 1 : 0;
  const double each = job.edges.at_zero[1 - there];
  float mass = 0.0f;
#pragma omp simd reduction(+ : mass)
  for (int i = 0; i < n; ++i) mass += b.w[there][i];
  sums.value += each * double(mass);
  sums.x[there] += each * double(mass);
  return true;
}

// Stage two of the columns [from, from + count).
static void sum_columns(const Job& job, const Row& r, int64_t from, int64_t count, Piece& piece) {
  if (job.formula == Formula::log_affinity) {
    Normalizer all = {-kInf, 0.0};
    Block<double> b;
    for (int64_t at = from; at < from + count; at += kBlock) {
      const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
      weigh_block(job, r, at, n, b);
      affinity_scores(job.parameter, n, b.log_w[0], b.log_w[1], b.value);
      all = merge(all, normalize_block(b.value, n, 1.0), 1.0);
    }
    piece.max[0] = all.max;
    piece.sum[0] = all.sum;
    return;
  }
  Sums sums = {0.0, {0.0, 0.0}};
  const bool wide = double_throughout(job);
  Block<float> b;
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    if (wide || !sum_block_in_single(job, r, at, n, sums, b)) sum_block_in_double(job, r, at, n, sums);
  }
  piece.value = sums.value;
  piece.sum_x[0] = sums.x[0];
  piece.sum_x[1] = sums.x[1];
}

KULLBACK_INLINE int64_t pieces_of(const Job& job) { return (job.num_columns + kPiece - 1) / kPiece; }

KULLBACK_INLINE int64_t piece_size(const Job& job, int64_t piece) {
  const int64_t left = job.num_columns - piece * kPiece;
  return left < kPiece ? left : kPiece;
}

static void normalize_piece(const Job& job, int64_t row, int64_t piece, Piece& out) {
  for (int side = 0; side < 2; ++side) {
    const Normalizer z = normalize_side(job, side, row_of(job, side, row), piece * kPiece, piece_size(job, piece));
    out.max[side] = z.max;
    out.sum[side] = z.sum;
  }
}

static void merge_normalizers(const Job& job, const Piece* pieces, int64_t count, Stats* stats) {
  for (int side = 0; side < 2; ++side) {
    Normalizer all = {-kInf, 0.0};
    for (int64_t i = 0; i < count; ++i)
      all = merge(all, {pieces[i].max[side], pieces[i].sum[side]}, job.sides[side].inverse_temperature);
    if (job.sides[side].reading == Reading::logits) {
      finish_normalizer(all, stats[side]);
    } else {
      stats[side].max = stats[side].log_sum = 0.0;
    }
    stats[side].sum_x = 0.0;
  }
}

static void sum_piece(const Job& job, int64_t row, int64_t piece, const Stats* stats, Piece& out) {
  sum_columns(job, find_row(job, row, stats), piece * kPiece, piece_size(job, piece), out);
}

static void finish_row(const Job& job, int64_t row, const Stats* stats, double value, double x_p, double x_q) {
  job.values[row] = value;
  if (job.stats == nullptr) return;
  job.stats[2 * row] = {stats[0].max, stats[0].log_sum, x_p};
  job.stats[2 * row + 1] = {stats[1].max, stats[1].log_sum, x_q};
}

static void merge_sums(const Job& job, int64_t row, const Piece* pieces, int64_t count, const Stats* stats) {
  if (job.formula == Formula::log_affinity) {
    Normalizer all = {-kInf, 0.0};
    for (int64_t i = 0; i < count; ++i) all = merge(all, {pieces[i].max[0], pieces[i].sum[0]}, 1.0);
    const bool infinite = magnitude(all.max) == kInf;
    const double value = infinite ? (all.sum == all.sum || all.max == kInf ? all.max : all.sum) : all.max + log(all.sum);
    finish_row(job, row, stats, value, job.parameter, 1.0 - job.parameter);
    return;
  }
  Sums sums = {0.0, {0.0, 0.0}};
  for (int64_t i = 0; i < count; ++i) {
    sums.value += pieces[i].value;
    sums.x[0] += pieces[i].sum_x[0];
    sums.x[1] += pieces[i].sum_x[1];
  }
  finish_row(job, row, stats, sums.value, sums.x[0], sums.x[1]);
}

// One row, piece by piece in order: the same bits as if threads had shared the pieces.
static void forward_long_row(const Job& job, int64_t row) {
  const int64_t count = pieces_of(job);
  Stats stats[2];
  Normalizer z[2] = {{-kInf, 0.0}, {-kInf, 0.0}};
  for (int64_t i = 0; i < count; ++i) {
    Piece piece;
    normalize_piece(job, row, i, piece);
    for (int side = 0; side < 2; ++side)
      z[side] = merge(z[side], {piece.max[side], piece.sum[side]}, job.sides[side].inverse_temperature);
  }
  Piece one;
  for (int side = 0; side < 2; ++side) {
    one.max[side] = z[side].max;
    one.sum[side] = z[side].sum;
  }
  merge_normalizers(job, &one, 1, stats);
  Piece total;
  total.max[0] = -kInf;
  total.sum[0] = total.value = total.sum_x[0] = total.sum_x[1] = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    Piece piece;
    sum_piece(job, row, i, stats, piece);
    if (job.formula == Formula::log_affinity) {
      const Normalizer sum = merge({total.max[0], total.sum[0]}, {piece.max[0], piece.sum[0]}, 1.0);
      total.max[0] = sum.max;
      total.sum[0] = sum.sum;
    } else {
      total.value += piece.value;
      total.sum_x[0] += piece.sum_x[0];
      total.sum_x[1] += piece.sum_x[1];
    }
  }
  merge_sums(job, row, &total, 1, stats);
}

KULLBACK_INLINE double scale_of(const Job& job, int side, double upstream) {
  return job.sides[side].reading == Reading::logits ? upstream * job.sides[side].inverse_temperature : upstream;
}

static void affinity_x(const Job& job, const Row& r, int n, Block<double>& b) {
  const double a = job.parameter;
  affinity_scores(a, n, b.log_w[0], b.log_w[1], b.value);
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const double share = exp_with_subnormals(b.value[i] - r.value);
    b.x[0][i] = a * share;
    b.x[1][i] = (1.0 - a) * share;
  }
}

template <class T>
static void write_gradients(const Job& job, const Row& r, int64_t row, int64_t from, int n, Block<T>& b) {
  for (int side = 0; side < 2; ++side) {
    if (job.gradients[side] == nullptr) continue;
    const Side& s = job.sides[side];
    char* out = static_cast<char*>(job.gradients[side]) + size_of(s.dtype) * row * job.num_columns;
    const double scale = scale_of(job, side, r.upstream);
    if (Same<T, float>::value && s.dtype == Dtype::float32) {
      pull_back<T>(job, side, n, scale, r.stats[side].sum_x, b.w[side], b.log_w[1 - side], b.x[side],
                   reinterpret_cast<T*>(out) + from);
    } else {
      pull_back<T>(job, side, n, scale, r.stats[side].sum_x, b.w[side], b.log_w[1 - side], b.x[side], b.value);
      store<T>(s.dtype, out, from, n, b.value);
    }
  }
}

static void backward_block_in_double(const Job& job, const Row& r, int64_t row, int64_t from, int n) {
  Block<double> b;
  weigh_block(job, r, from, n, b);
  if (job.formula == Formula::log_affinity) {
    affinity_x(job, r, n, b);
  } else {
    write_formula(job, n, b);
  }
  write_gradients(job, r, row, from, n, b);
}

static bool backward_logits(const Job& job, const Row& r, int64_t row, int64_t from, int n, Block<float>& b) {
  const float* x = load<float>(job.sides[0].dtype, r.data[0], from, n, b.w[0]);
  const float* y = load<float>(job.sides[1].dtype, r.data[1], from, n, b.w[1]);
  float scale[2], sum_x[2], *to[2];
  for (int side = 0; side < 2; ++side) {
    scale[side] = float(scale_of(job, side, r.upstream));
    sum_x[side] = float(r.stats[side].sum_x);
    float* whole = static_cast<float*>(job.gradients[side]);
    to[side] = whole == nullptr                                ? nullptr
               : job.sides[side].dtype == Dtype::float32 ? whole + row * job.num_columns + from
                                                               : b.x[side];
  }
  if (!write_formula_of_logits(job, n, FromLogits(job, x, y, r.stats), scale, sum_x, to[0], to[1])) return false;
  for (int side = 0; side < 2; ++side) {
    const Dtype dtype = job.sides[side].dtype;
    if (to[side] != b.x[side]) continue;
    store<float>(dtype, static_cast<char*>(job.gradients[side]) + size_of(dtype) * row * job.num_columns, from, n, b.x[side]);
  }
  return true;
}

static bool backward_block_in_single(const Job& job, const Row& r, int64_t row, int64_t from, int n, Block<float>& b) {
  if (logits_at_one_temperature(job)) return backward_logits(job, r, row, from, n, b);
  const Kind kind = weigh_block(job, r, from, n, b);
  if (kind == Kind::redo) return false;
  if (kind == Kind::both) {
    if (!write_formula(job, n, b)) return false;
  } else {
    const int there = kind == Kind::p_gone ? 1 : 0;
    const float each = float(job.edges.at_zero[1 - there]);
#pragma omp simd
    for (int i = 0; i < n; ++i) b.x[there][i] = each * b.w[there][i];
  }
  write_gradients(job, r, row, from, n, b);
  return true;
}

static bool moderate(double x) { return x == 0.0 || (magnitude(x) < double(kSafe) && magnitude(x) > 1.0 / double(kSafe)); }

static void backward_columns(const Job& job, int64_t row, int64_t from, int64_t count) {
  const double value = job.values[row], upstream = job.upstream[offset_of(job, job.upstream_strides, row)];
  const bool silent = magnitude(value) == kInf || upstream == 0.0;
  if (silent) {
    for (int side = 0; side < 2; ++side) {
      if (job.gradients[side] == nullptr) continue;
      const int64_t size = size_of(job.sides[side].dtype);
      __builtin_memset(static_cast<char*>(job.gradients[side]) + size * (row * job.num_columns + from), 0, size_t(size * count));
    }
    return;
  }
  Row r = find_row(job, row, job.stats + 2 * row);
  r.value = value;
  r.upstream = upstream;
  bool wide = double_throughout(job);
  for (int side = 0; side < 2; ++side)
    wide |= !moderate(scale_of(job, side, upstream)) || !(magnitude(r.stats[side].sum_x) < double(kSafe));
  Block<float> b;
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    if (wide || !backward_block_in_single(job, r, row, at, n, b)) backward_block_in_double(job, r, row, at, n);
  }
}

static void backward_piece(const Job& job, int64_t row, int64_t piece) {
  backward_columns(job, row, piece * kPiece, piece_size(job, piece));
}

// ---------------------------------------------------------------- short rows

// Many short rows of logits stand side by side, one a lane, so that no lane is idle: cell (column, row) is at
// column·kLanes + row. A row that single precision cannot hold is computed alone, as a long row would be; no row's
// result depends on its neighbours.
constexpr int kLanes = 64, kShort = 64;

static bool side_by_side(const Job& job) {
  return job.num_columns <= kShort && job.num_rows >= kLanes / 4 && logits_at_one_temperature(job) && !double_throughout(job);
}

struct Lanes {
  alignas(64) float cells[2][kShort * kLanes];
  alignas(64) float max[2][kLanes], log_sum[2][kLanes], shift_high[kLanes], shift_low[kLanes];
  alignas(64) double max_d[2][kLanes], log_sum_d[2][kLanes];
  alignas(64) int outside[kLanes];
};

static void gather(const Job& job, int64_t first, int count, Lanes& t) {
  const int columns = int(job.num_columns);
  for (int side = 0; side < 2; ++side) {
    for (int r = 0; r < kLanes; ++r) {
      float room[kShort];
      const void* row = row_of(job, side, first + (r < count ? r : 0));
      const float* x = load<float>(job.sides[side].dtype, row, 0, columns, room);
      for (int v = 0; v < columns; ++v) t.cells[side][v * kLanes + r] = x[v];
    }
  }
}

static void normalize_lanes(const Job& job, Lanes& t) {
  const int columns = int(job.num_columns);
  const double scale = job.sides[0].inverse_temperature;
  for (int side = 0; side < 2; ++side) {
    float* max = t.max[side];
    const float* cells = t.cells[side];
    alignas(64) double sum[kLanes];
    for (int r = 0; r < kLanes; ++r) max[r] = cells[r];
    for (int v = 1; v < columns; ++v) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) max[r] = cells[v * kLanes + r] > max[r] ? cells[v * kLanes + r] : max[r];
    }
    for (int r = 0; r < kLanes; ++r) sum[r] = 0.0;
    for (int v = 0; v < columns; ++v) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) sum[r] += exp((double(cells[v * kLanes + r]) - double(max[r])) * scale);
    }
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      t.max_d[side][r] = double(max[r]);
      t.log_sum_d[side][r] = log(sum[r]);
    }
  }
}

static void prepare_lanes(const Job& job, Lanes& t) {
  const double temperature = 1.0 / job.sides[0].inverse_temperature;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    const double shift = (t.max_d[1][r] - t.max_d[0][r]) + (t.log_sum_d[1][r] - t.log_sum_d[0][r]) * temperature;
    const float high = float(shift);
    t.shift_high[r] = high;
    t.shift_low[r] = float(shift - double(high));
    t.max[0][r] = float(t.max_d[0][r]);
    t.max[1][r] = float(t.max_d[1][r]);
    t.log_sum[0][r] = float(t.log_sum_d[0][r]);
    t.log_sum[1][r] = float(t.log_sum_d[1][r]);
    t.outside[r] = 0;
  }
}

template <class G>
static bool sum_lanes(const G& generator, const Job& job, Lanes& t, float* __restrict value, float* __restrict x_p,
                      float* __restrict x_q) {
  const G g = generator;
  const float scale = float(job.sides[0].inverse_temperature);
  const int columns = int(job.num_columns);
  for (int v = 0; v < columns; ++v) {
    const float *a = t.cells[0] + v * kLanes, *b = t.cells[1] + v * kLanes;
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      const Cells<float> c = cells_of_logits(a[r], b[r], t.max[0][r], t.max[1][r], t.log_sum[0][r], t.log_sum[1][r],
                                             t.shift_high[r], t.shift_low[r], scale);
      const Terms<float> f = G::template at<float>(g, c);
      value[r] += f.value;
      x_p[r] += f.dlogp;
      x_q[r] += f.dlogq;
      t.outside[r] |= !(magnitude(c.d) < float(g.reach));
    }
  }
  return true;
}

// Writes the gradients over the cells.
template <class G>
static bool write_lanes(const G& generator, const Job& job, Lanes& t, const float* scale_p, const float* scale_q,
                        const float* sum_p, const float* sum_q) {
  const G g = generator;
  const float scale = float(job.sides[0].inverse_temperature);
  const int columns = int(job.num_columns);
  for (int v = 0; v < columns; ++v) {
    float *a = t.cells[0] + v * kLanes, *b = t.cells[1] + v * kLanes;
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      const Cells<float> c = cells_of_logits(a[r], b[r], t.max[0][r], t.max[1][r], t.log_sum[0][r], t.log_sum[1][r],
                                             t.shift_high[r], t.shift_low[r], scale);
      const Terms<float> f = G::template at<float>(g, c);
      a[r] = scale_p[r] * (f.dlogp - c.p * sum_p[r]);
      b[r] = scale_q[r] * (f.dlogq - c.q * sum_q[r]);
      t.outside[r] |= !(magnitude(c.d) < float(g.reach));
    }
  }
  return true;
}

static void forward_lanes(const Job& job, int64_t first, int count) {
  Lanes t;
  alignas(64) float value[kLanes] = {}, x_p[kLanes] = {}, x_q[kLanes] = {};
  gather(job, first, count, t);
  normalize_lanes(job, t);
  prepare_lanes(job, t);
  with_generator(job, [&](const auto& g) { return sum_lanes(g, job, t, value, x_p, x_q); });
  for (int r = 0; r < count; ++r) {
    if (t.outside[r]) {
      forward_long_row(job, first + r);
    } else {
      const Stats stats[2] = {{t.max_d[0][r], t.log_sum_d[0][r], 0.0}, {t.max_d[1][r], t.log_sum_d[1][r], 0.0}};
      finish_row(job, first + r, stats, double(value[r]), double(x_p[r]), double(x_q[r]));
    }
  }
}

static void backward_lanes(const Job& job, int64_t first, int count) {
  Lanes t;
  alignas(64) float scale[2][kLanes] = {}, sum_x[2][kLanes] = {};
  bool alone[kLanes] = {};
  for (int r = 0; r < kLanes; ++r) {
    const int64_t row = first + (r < count ? r : 0);
    const double value = job.values[row], upstream = job.upstream[offset_of(job, job.upstream_strides, row)];
    alone[r] = !(magnitude(value) < kInf) || upstream == 0.0;
    for (int side = 0; side < 2; ++side) {
      const Stats& stats = job.stats[2 * row + side];
      const double s = scale_of(job, side, upstream);
      t.max_d[side][r] = stats.max;
      t.log_sum_d[side][r] = stats.log_sum;
      alone[r] |= !moderate(s) || !(magnitude(stats.sum_x) < double(kSafe));
      scale[side][r] = alone[r] ? 0.0f : float(s);
      sum_x[side][r] = alone[r] ? 0.0f : float(stats.sum_x);
    }
  }
  gather(job, first, count, t);
  prepare_lanes(job, t);
  with_generator(job, [&](const auto& g) { return write_lanes(g, job, t, scale[0], scale[1], sum_x[0], sum_x[1]); });
  const int columns = int(job.num_columns);
  for (int r = 0; r < count; ++r) {
    if (alone[r] || t.outside[r]) {
      backward_columns(job, first + r, 0, columns);
      continue;
    }
    for (int side = 0; side < 2; ++side) {
      if (job.gradients[side] == nullptr) continue;
      float room[kShort];
      for (int v = 0; v < columns; ++v) room[v] = t.cells[side][v * kLanes + r];
      const Dtype dtype = job.sides[side].dtype;
      store<float>(dtype, static_cast<char*>(job.gradients[side]) + size_of(dtype) * (first + r) * columns, 0, columns, room);
    }
  }
}

// ---------------------------------------------------------------- entry points

static int64_t rows_together(const Job& job) { return side_by_side(job) ? kLanes : 1; }

static void forward_rows(const Job& job, int64_t first, int64_t last) {
  if (side_by_side(job)) {
    for (int64_t row = first; row < last; row += kLanes) forward_lanes(job, row, int(last - row < kLanes ? last - row : kLanes));
    return;
  }
  for (int64_t row = first; row < last; ++row) forward_long_row(job, row);
}

static void backward_rows(const Job& job, int64_t first, int64_t last) {
  if (side_by_side(job)) {
    for (int64_t row = first; row < last; row += kLanes) backward_lanes(job, row, int(last - row < kLanes ? last - row : kLanes));
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
