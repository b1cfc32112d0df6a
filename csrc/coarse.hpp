// A side of k listed classes beside a row of logits: core/coarse.py, transcribed. All classes that are not listed are
// one cell, so that there are k + 1 cells, in double, whatever the generator. The row of logits is read once for its
// normaliser, and once for its gradient, which beside the listed classes is a multiple of its weights.
//
// The rest of the logits is Σ exp less the very same exponentials of the listed classes. These are single, which is an
// error of 1e-7 in the rest's weight; where that, or what the subtraction cancels, would show in the value, the rest is
// added up in double.
#pragma once

#include "logit_pairs.hpp"

namespace kullback {
namespace KULLBACK_ISA {

KULLBACK_INLINE bool is_coarse(const Job& job) {
  return job.sides[0].reading == Reading::coarse || job.sides[1].reading == Reading::coarse;
}

// Of a coarse job: the side of the logits.
KULLBACK_INLINE int dense_side(const Job& job) { return job.sides[0].reading == Reading::coarse ? 1 : 0; }

// What `Stats` hold of a coarse row: of the dense side what they always do; of the listed side, in `max` log w of the
// dense side's rest, in `log_sum` the rest's ∂f/∂log w.
struct Rest {
  double log_w, x;
};

KULLBACK_INLINE Rest rest_of(const Job& job, const Stats* stats) {
  const Stats& s = stats[1 - dense_side(job)];
  return {s.max, s.log_sum};
}

template <class T>
static void gather_scores(const T* row, const int64_t* ids, int n, double* x) {
  for (int i = 0; i < n; ++i) x[i] = double(row[ids[i]]);
}

static void gather_scores(Dtype dtype, const void* row, const int64_t* ids, int n, double* x) {
  switch (dtype) {
    case Dtype::float64: return gather_scores(static_cast<const double*>(row), ids, n, x);
    case Dtype::float32: return gather_scores(static_cast<const float*>(row), ids, n, x);
    default:
      for (int i = 0; i < n; ++i) {
        float room;
        x[i] = double(*load<float>(dtype, row, ids[i], 1, &room));
      }
  }
}

// ---------------------------------------------------------------- cells

// Weights of the cells [from, from + n) of the count + 1, the rest last.
static void coarse_cells(const Job& job, const Listed& l, const void* scores, const Stats* stats, int64_t from, int n,
                         Block<double>& b) {
  const int dense = dense_side(job);
  const Side& s = job.sides[dense];
  const int ids = int(l.count - from < n ? l.count - from : n);
  gather_scores(s.dtype, scores, l.ids + from, ids, b.room);
  const double m = stats[dense].max, log_sum = stats[dense].log_sum, scale = s.inverse_temperature;
  double *log_dense = b.log_w[dense], *log_listed = b.log_w[1 - dense];
#pragma omp simd
  for (int i = 0; i < ids; ++i) log_dense[i] = (b.room[i] - m) * scale - log_sum;
  for (int i = 0; i < ids; ++i) log_listed[i] = l.logs[from + i];
  if (ids < n) {
    log_dense[ids] = rest_of(job, stats).log_w;
    log_listed[ids] = l.rest;
  }
  for (int side = 0; side < 2; ++side) {
    const double* log_w = b.log_w[side];
    double* w = b.w[side];
#pragma omp simd
    for (int i = 0; i < n; ++i) w[i] = exp_with_subnormals(log_w[i]);
  }
}

template <class G>
static double terms_of_cells(const G& generator, const Edges& all_edges, int n, Block<double>& b) {
  const G g = generator;
  const Edges edges = all_edges;
  const FromWeights<double> source(b);
  double value = 0.0;
#pragma omp simd reduction(+ : value)
  for (int i = 0; i < n; ++i) {
    const Terms<double> f = FromWeights<double>::template terms<G>(g, edges, source, i).f;
    value += f.value;
    b.x[0][i] = f.dlogp;
    b.x[1][i] = f.dlogq;
  }
  return value;
}

// Σ f of n cells, whose ∂f/∂log w go to b.x; of `log_affinity`, given the row's value, these alone.
static double terms_of_cells(const Job& job, int n, double row_value, Block<double>& b) {
  if (job.formula == Formula::log_affinity) {
    const double a = job.parameter;
    affinity_scores(a, n, b.log_w[0], b.log_w[1], b.value);
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const double share = exp_with_subnormals(b.value[i] - row_value);
      b.x[0][i] = a * share;
      b.x[1][i] = (1.0 - a) * share;
    }
    return 0.0;
  }
  double value = 0.0;
  with_generator(job, [&](const auto& g) {
    value = terms_of_cells(g, job.edges, n, b);
    return true;
  });
  return value;
}

static double affinity_of_cells(const Job& job, const Listed& l, const void* scores, const Stats* stats) {
  Block<double> b;
  Normalizer all = {-kInf, 0.0};
  double odd = 0.0;
  for (int64_t from = 0; from <= l.count; from += kBlock) {
    const int n = int(l.count + 1 - from < kBlock ? l.count + 1 - from : kBlock);
    coarse_cells(job, l, scores, stats, from, n, b);
    affinity_scores(job.parameter, n, b.log_w[0], b.log_w[1], b.value);
    all = merge(all, normalize_block(b.value, n, 1.0), 1.0);
    for (int i = 0; i < n; ++i) odd = b.value[i] == b.value[i] ? odd : b.value[i];
  }
  return (magnitude(all.max) == kInf ? all.max : all.max + log(all.sum)) + odd;
}

// The row's value, given both normalisers and the rest's weight; its sums go to `stats`. `keep`, where it is given, gets
// ∂f/∂log w of the dense side in every cell, then the weights of that side.
static double sum_cells(const Job& job, const Listed& l, const void* scores, Stats* stats, double* keep) {
  const int dense = dense_side(job);
  const double affinity = job.formula == Formula::log_affinity ? affinity_of_cells(job, l, scores, stats) : 0.0;
  Block<double> b;
  double value = affinity, sum_x = 0.0, last = 0.0;
  for (int64_t from = 0; from <= l.count; from += kBlock) {
    const int n = int(l.count + 1 - from < kBlock ? l.count + 1 - from : kBlock);
    coarse_cells(job, l, scores, stats, from, n, b);
    value += terms_of_cells(job, n, affinity, b);
    const double* x = b.x[dense];
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += x[i];
    sum_x += sum;
    last = x[n - 1];
    if (keep != nullptr) {
      for (int i = 0; i < n; ++i) keep[from + i] = x[i];
      for (int i = 0; i < n; ++i) keep[l.count + 1 + from + i] = b.w[dense][i];
    }
  }
  stats[dense].sum_x = sum_x;
  stats[1 - dense].log_sum = last;
  stats[1 - dense].sum_x = 0.0;
  return value;
}

// ---------------------------------------------------------------- the rest

// (m, Σ exp(x - m)) of the classes that are not listed, in double.
static Normalizer normalize_rest(const Side& s, const Listed& l, const void* scores, int64_t columns) {
  alignas(64) double room[kBlock];
  Normalizer all = {-kInf, 0.0};
  int64_t next = 0;
  for (int64_t at = 0; at < columns; at += kBlock) {
    const int n = int(columns - at < kBlock ? columns - at : kBlock);
    const double* x = load<double>(s.dtype, scores, at, n, room);
    if (next < l.count && l.ids[next] < at + n) {
      if (x != room)
        for (int i = 0; i < n; ++i) room[i] = x[i];
      for (; next < l.count && l.ids[next] < at + n; ++next) room[l.ids[next] - at] = -kInf;
      x = room;
    }
    all = merge(all, normalize_block(x, n, s.inverse_temperature), s.inverse_temperature);
  }
  return all;
}

// Σ exp((x - max) / T) of the listed classes.
static double sum_listed(const Side& s, const Listed& l, const void* scores, double max) {
  alignas(64) double x[kBlock];
  const double scale = s.inverse_temperature;
  double sum = 0.0;
  for (int64_t from = 0; from < l.count; from += kBlock) {
    const int n = int(l.count - from < kBlock ? l.count - from : kBlock);
    gather_scores(s.dtype, scores, l.ids + from, n, x);
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += exp((x[i] - max) * scale);
  }
  return sum;
}

static double largest_listed(const Side& s, const Listed& l, const void* scores) {
  alignas(64) double x[kBlock];
  double max = -kInf;
  for (int64_t from = 0; from < l.count; from += kBlock) {
    const int n = int(l.count - from < kBlock ? l.count - from : kBlock);
    gather_scores(s.dtype, scores, l.ids + from, n, x);
    for (int i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  }
  return max;
}

// Σ of the exponentials of listed classes as stage one kept them, times e^(block's max - max).
static double sum_kept_listed(const Listed& l, const float* exps, const Range* ranges, int power, double max,
                              double scale) {
  alignas(64) double kept[kBlock], below[kBlock];
  double sum = 0.0;
  for (int64_t from = 0; from < l.count; from += kBlock) {
    const int n = int(l.count - from < kBlock ? l.count - from : kBlock);
    for (int i = 0; i < n; ++i) {
      const int64_t id = l.ids[from + i];
      float e = exps[id];
      for (int k = 1; k < power; ++k) e *= exps[id];
      kept[i] = double(e);
      below[i] = (double(ranges[id / kBlock].max) - max) * scale;
    }
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += kept[i] * exp(below[i]);
  }
  return sum;
}

// The single exponentials that stage one kept, to some power; none where `exps` is null.
struct KeptExponentials {
  const float* exps;
  const Range* ranges;
  int power;
  double max, sum;  // of all of them
};

// A row's value, from the normaliser on; `stats` are then those of its gradient.
static double finish_coarse(const Job& job, int64_t row, const KeptExponentials& kept, Stats* stats, double* keep) {
  constexpr double error = 2.5e-7, shows = 3e-6;
  const int dense = dense_side(job);
  const Side& s = job.sides[dense];
  const Listed l = listed_at(row_of(job, 1 - dense, row));
  const void* scores = row_of(job, dense, row);
  Stats &own = stats[dense], &other = stats[1 - dense];
  if (kept.exps != nullptr && kept.max > -kInf && kept.max < kInf) {
    const double rest =
        kept.sum - sum_kept_listed(l, kept.exps, kept.ranges, kept.power, kept.max, s.inverse_temperature);
    if (rest > 1e-9 * kept.sum) {
      own.max = kept.max;
      own.log_sum = log(rest + sum_listed(s, l, scores, kept.max));
      other.max = log(rest) - own.log_sum;
      const double value = sum_cells(job, l, scores, stats, keep);
      const double slope = magnitude(other.log_sum - exp(other.max) * own.sum_x);
      if (slope * (error * kept.power + 4e-15 * kept.sum / rest) <= shows * magnitude(value)) return value;
    }
  }
  const Normalizer rest = normalize_rest(s, l, scores, job.num_columns);
  const double largest = largest_listed(s, l, scores), max = largest > rest.max ? largest : rest.max;
  const double scale = s.inverse_temperature,
               below = rest.sum == 0.0 ? -kInf : (rest.max - max) * scale + log(rest.sum);
  finish_normalizer({max, sum_listed(s, l, scores, max) + (rest.sum == 0.0 ? 0.0 : exp(below))}, own);
  other.max = below - own.log_sum;
  return sum_cells(job, l, scores, stats, keep);
}

// ---------------------------------------------------------------- as jobs go through their stages

// Floats that one row keeps between stages; 0 where it keeps nothing.
static int64_t kept_floats(const Job& job) {
  if (!is_coarse(job)) return pair_kept_floats(job);
  return double_throughout(job) || job.num_columns <= kBlock ? 0 : (kBlock + 2) * blocks_of(job.num_columns);
}

KULLBACK_INLINE Kept coarse_kept_at(const Job& job, float* room, Ahead* ahead) {
  Range* ranges = reinterpret_cast<Range*>(room + kBlock * blocks_of(job.num_columns));
  return {{room, room}, {ranges, ranges}, ahead};
}

// `stats`: the normaliser of what `kept` holds, or nothing where it is null.
static double finish_coarse(const Job& job, int64_t row, float* kept, Stats* stats) {
  if (kept == nullptr) return finish_coarse(job, row, {nullptr, nullptr, 1, 0.0, 0.0}, stats, nullptr);
  const Kept k = coarse_kept_at(job, kept, nullptr);
  const Stats& own = stats[dense_side(job)];
  return finish_coarse(job, row, {k.exps[0], k.ranges[0], 1, own.max, exp(own.log_sum)}, stats, nullptr);
}

// A finished row through `Piece`, for threads that share it.
static void give_coarse(const Job& job, double value, const Stats* stats, Piece& out) {
  const int dense = dense_side(job);
  out = {{stats[dense].max, stats[dense].log_sum},
         {stats[1 - dense].max, stats[1 - dense].log_sum},
         value,
         {stats[dense].sum_x, 0.0}};
}

static double take_coarse(const Job& job, const Piece& piece, Stats* stats) {
  const int dense = dense_side(job);
  stats[dense] = {piece.max[0], piece.max[1], piece.sum_x[0]};
  stats[1 - dense] = {piece.sum[0], piece.sum[1], 0.0};
  return piece.value;
}

// ---------------------------------------------------------------- gradients

// What a weight outside of the list is multiplied by: (rest's x) / (rest's weight) - Σ x; 0 where the rest is nothing.
KULLBACK_INLINE double outside_factor(const Job& job, const Stats* stats) {
  const Rest rest = rest_of(job, stats);
  return rest.log_w == -kInf ? 0.0 : rest.x * exp(-rest.log_w) - stats[dense_side(job)].sum_x;
}

// Gradients of the listed classes from place `first` on, n <= kBlock of them.
static void listed_gradients(const Job& job, const Row& r, double scale, int64_t first, int n, double* out) {
  const int dense = dense_side(job);
  const Listed l = listed_at(r.data[1 - dense]);
  Block<double> b;
  coarse_cells(job, l, r.data[dense], r.stats, first, n, b);
  terms_of_cells(job, n, r.value, b);
  const double sum_x = r.stats[dense].sum_x;
  for (int i = 0; i < n; ++i) out[i] = scale * (b.x[dense][i] - b.w[dense][i] * sum_x);
}

// Calls `act(id, gradient)` with every listed class in the columns [from, from + count).
template <class Act>
static void each_listed(const Job& job, const Row& r, double scale, int64_t from, int64_t count, Act act) {
  const Listed l = listed_at(r.data[1 - dense_side(job)]);
  const int64_t last = first_from(l, from + count);
  alignas(64) double out[kBlock];
  for (int64_t first = first_from(l, from); first < last; first += kBlock) {
    const int n = int(last - first < kBlock ? last - first : kBlock);
    listed_gradients(job, r, scale, first, n, out);
    for (int i = 0; i < n; ++i) act(l.ids[first + i], out[i]);
  }
}

// n <= kBlock cells in double, listed or not.
static void coarse_gradients(const Job& job, const Row& r, double scale, int64_t from, int n, double* out) {
  const int dense = dense_side(job);
  const Rest rest = rest_of(job, r.stats);
  const bool nothing = rest.log_w == -kInf;
  const double sum_x = r.stats[dense].sum_x;
  Block<double> b;
  weigh<double>(job.sides[dense], r.data[dense], -1, from, n, r.stats[dense], b.room, b.log_w[dense], b.w[dense]);
  const double *log_w = b.log_w[dense], *w = b.w[dense];
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const double share = nothing ? 0.0 : exp_with_subnormals(log_w[i] - rest.log_w);
    out[i] = scale * (rest.x * share - w[i] * sum_x);
  }
  each_listed(job, r, scale, from, n, [&](int64_t id, double gradient) { out[id - from] = gradient; });
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
