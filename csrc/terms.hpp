// core/readings.py and the terms of core/reduction.py, transcribed: the cells of one block of one row.
#pragma once

#include "generators.hpp"
#include "normalizer.hpp"

namespace kullback {
namespace KULLBACK_ISA {

// A listed row (engines/cpu.py: `listed_rows`): how many, and for how many there is room; ids in ascending order, log w of
// each, and log w of each other class, or of all others together.
struct Listed {
  int64_t count, room;
  const int64_t* ids;
  const double* logs;
  double rest;
};

KULLBACK_INLINE Listed listed_at(const void* row) {
  const int64_t* at = static_cast<const int64_t*>(row);
  const double* logs = reinterpret_cast<const double*>(at + kListedHead + at[1]);
  return {at[0], at[1], at + kListedHead, logs, logs[at[1]]};
}

// The place of the first id that is >= `id`.
static int64_t first_from(const Listed& l, int64_t id) {
  int64_t low = 0, high = l.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (l.ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// What a block is, as far as single precision goes.
enum class Kind { both, p_gone, q_gone, redo };

// log w and w of n cells of one row. False where single precision must not go on.
template <class T>
static bool weigh(const Side& s, const void* row, int64_t label, int64_t from, int n, const Stats& stats, T* room,
                  double* log_w, T* w) {
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
    case Reading::even: {
      const Listed listed = listed_at(row);
      const double l = listed.rest, each = exp_with_subnormals(l);
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        log_w[i] = l;
        w[i] = T(each);
      }
      double least = each > 0.0 ? each : 1.0;
      for (int64_t k = first_from(listed, from); k < listed.count && listed.ids[k] < from + n; ++k) {
        const int i = int(listed.ids[k] - from);
        log_w[i] = listed.logs[k];
        w[i] = T(exp_with_subnormals(log_w[i]));
        least = log_w[i] > -kInf && double(w[i]) < least ? double(w[i]) : least;
      }
      return least > 1e-30;
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

KULLBACK_INLINE bool gone(const Side& s, const void* row, int64_t label, int64_t from, int n) {
  if (s.reading == Reading::even) {
    const Listed listed = listed_at(row);
    if (listed.rest != -kInf) return false;
    const int64_t next = first_from(listed, from);
    return !(next < listed.count && listed.ids[next] < from + n);
  }
  return s.reading == Reading::labels && s.off == 0.0 && !(label >= from && label < from + n);
}

// One side's gradient from its x = ∂f/∂log w: core's `pull_back`, times `scale` (upstream over temperature).
// `other` is log of the other side's weight; only edges look at it.
template <class T>
static void pull_back(const Job& job, int side, int n, double scale_d, double sum_x_d, const T* w, const double* other,
                      const T* x, T* out) {
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
static bool write_terms(const G& generator, const Edges& all_edges, int n, const Source& where, T* x_p, T* x_q) {
  const G g = generator;
  const Edges edges = all_edges;
  const Source source = where;
  int outside = 0;
#pragma omp simd reduction(| : outside)
  for (int i = 0; i < n; ++i) {
    const Seen<T> cell = Source::template terms<G>(g, edges, source, i);
    const Terms<T> f = cell.f;
    outside |= cell.outside;
    x_p[i] = f.dlogp;
    x_q[i] = f.dlogq;
  }
  return !(Same<T, float>::value && outside);
}

// Calls `act` with the generator that the job names. There is no other: bindings.cpp knows formulas by their names.
template <class Act>
KULLBACK_INLINE bool with_generator(const Job& job, Act act) {
  switch (job.formula) {
#define KULLBACK_CASE(name) \
  case Formula::name: return with<name>(job.parameter, act);
    KULLBACK_GENERATORS(KULLBACK_CASE)
#undef KULLBACK_CASE
    case Formula::log_affinity: break;
  }
  __builtin_trap();
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
    return write_terms<T>(g, job.edges, n, source, b.x[0], b.x[1]);
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

}  // namespace KULLBACK_ISA
}  // namespace kullback
