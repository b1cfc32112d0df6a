// Two rows of logits at one temperature, in single precision: the pair that large vocabularies are made of.
#pragma once

#include "terms.hpp"

namespace kullback {
namespace KULLBACK_ISA {

// bfloat16 scores are read where they are used.
struct Bfloat16 {
  uint16_t bits;
};
KULLBACK_INLINE float widen(float x) { return x; }
KULLBACK_INLINE float widen(Bfloat16 x) { return widen_bfloat16(x.bits); }

// Calls `act` with the cells [from, from + n) of a row: bfloat16 as they lie, else as float32.
template <class Act>
KULLBACK_INLINE void with_scores(Dtype dtype, const void* row, int64_t from, int n, float* room, Act act) {
  if (dtype == Dtype::bfloat16) {
    act(static_cast<const Bfloat16*>(row) + from);
  } else {
    act(load<float>(dtype, row, from, n, room));
  }
}

// What every cell of a pair of rows shares.
struct PairOfRows {
  float max_a, max_b, log_sum_a, log_sum_b, scale, shift_high, shift_low, rest_high, rest_low;

  PairOfRows(const Job& job, const Stats* stats) {
    max_a = float(stats[0].max), max_b = float(stats[1].max);
    log_sum_a = float(stats[0].log_sum), log_sum_b = float(stats[1].log_sum);
    scale = float(job.sides[0].inverse_temperature);
    // log Z_b - log Z_a, before temperature
    const double shift =
        (stats[1].max - stats[0].max) + (stats[1].log_sum - stats[0].log_sum) / job.sides[0].inverse_temperature;
    shift_high = float(shift);
    shift_low = float(shift - double(shift_high));
    const double rest = (stats[1].log_sum - stats[0].log_sum) / job.sides[0].inverse_temperature;
    rest_high = float(rest);
    rest_low = float(rest - double(rest_high));
  }
};

// d = ((b - a) - (log Z_b - log Z_a)) / temperature by a compensated subtraction: a common offset costs nothing.
KULLBACK_INLINE float log_ratio(float a, float b, float shift_high, float shift_low, float scale) {
  const float difference = b - a, moved = difference - b;
  const float lost = (b - (difference - moved)) - (a + moved);  // what rounding b - a lost, exactly
  return ((difference - shift_high) + (lost - shift_low)) * scale;
}

KULLBACK_INLINE float log_ratio(float a, float b, const PairOfRows& r) {
  return log_ratio(a, b, r.shift_high, r.shift_low, r.scale);
}

// Scores of eight digits lose nothing when their own row's maximum is taken off, unless they are nothing beside it: an
// offset is gone before the two rows meet, and their difference needs no compensation.
KULLBACK_INLINE float log_ratio(Bfloat16 a, Bfloat16 b, const PairOfRows& r) {
  return ((((widen(b) - r.max_b) - (widen(a) - r.max_a)) - r.rest_high) - r.rest_low) * r.scale;
}

KULLBACK_INLINE Cells<float> cells_of_logits(float a, float b, float max_a, float max_b, float log_sum_a,
                                             float log_sum_b, float shift_high, float shift_low, float scale) {
  const float log_p = (a - max_a) * scale - log_sum_a, log_q = (b - max_b) * scale - log_sum_b;
  return {exp_negative(log_p), exp_negative(log_q), log_ratio(a, b, shift_high, shift_low, scale), log_q};
}

// Any cells: an edge shows by its infinite d, and sends the block to double precision.
struct FromLogits {
  const float *a, *b;
  PairOfRows rows;

  template <class G>
  KULLBACK_INLINE Seen<float> terms(const G& g, const Edges&, const FromLogits& s, int i) {
    const PairOfRows& r = s.rows;
    const Cells<float> c =
        cells_of_logits(s.a[i], s.b[i], r.max_a, r.max_b, r.log_sum_a, r.log_sum_b, r.shift_high, r.shift_low, r.scale);
    return {G::template at<float>(g, c), c.p, c.q, !(magnitude(c.d) < float(g.reach))};
  }
};

// Cells that are known to be safe (below), given e^(x - m) of either side, m the largest of the block.
template <class X>
struct FromExponentials {
  const X *a, *b;
  const float *exp_a, *exp_b;
  float to_p, to_q;  // e^m / Z
  PairOfRows rows;

  template <class G>
  KULLBACK_INLINE Seen<float> terms(const G& g, const Edges&, const FromExponentials& s, int i) {
    const PairOfRows& r = s.rows;
    const float p = s.exp_a[i] * s.to_p, q = s.exp_b[i] * s.to_q,
                log_q = (widen(s.b[i]) - r.max_b) * r.scale - r.log_sum_b;
    const Cells<float> c = {p, q, log_ratio(s.a[i], s.b[i], r), log_q};
    return {G::template at<float>(g, c), p, q, 0};
  }
};

// Cells that are known to be safe, from logits alone.
template <class X>
struct FromSafeLogits {
  const X *a, *b;
  float to_p, to_q;  // 1 / Z
  PairOfRows rows;

  template <class G>
  KULLBACK_INLINE Seen<float> terms(const G& g, const Edges&, const FromSafeLogits& s, int i) {
    const PairOfRows& r = s.rows;
    const float below_a = (widen(s.a[i]) - r.max_a) * r.scale, below_b = (widen(s.b[i]) - r.max_b) * r.scale;
    const float p = exp_bounded(below_a) * s.to_p, q = exp_bounded(below_b) * s.to_q;
    const Cells<float> c = {p, q, log_ratio(s.a[i], s.b[i], r), below_b - r.log_sum_b};
    return {G::template at<float>(g, c), p, q, 0};
  }
};

// Calls `act` with the cells of both rows: bfloat16 as they lie where both are, else as float32.
template <class Act>
KULLBACK_INLINE void with_pair(const Job& job, const Row& r, int64_t from, int n, float (*rooms)[kBlock], Act act) {
  if (job.sides[0].dtype == Dtype::bfloat16 && job.sides[1].dtype == Dtype::bfloat16) {
    act(static_cast<const Bfloat16*>(r.data[0]) + from, static_cast<const Bfloat16*>(r.data[1]) + from);
  } else {
    act(load<float>(job.sides[0].dtype, r.data[0], from, n, rooms[0]),
        load<float>(job.sides[1].dtype, r.data[1], from, n, rooms[1]));
  }
}

// ---------------------------------------------------------------- safe blocks

struct Range {
  float max, min;
};

template <class X>
static Range range_of(const X* scores, int n) {
  float max = widen(scores[0]), min = max;
#pragma omp simd reduction(max : max) reduction(min : min)
  for (int i = 0; i < n; ++i) {
    const float x = widen(scores[i]);
    max = x > max ? x : max;
    min = x < min ? x : min;
  }
  return {max, min};
}

// Whether every weight of a block is well above the smallest number of single precision, and every |d| below `reach`.
// False where a cell is infinite; a NaN makes the whole row's normaliser one, and so this false.
static bool safe(const Range& a, const Range& b, const Stats* stats, double scale, double reach) {
  constexpr double faintest = -80.0;
  const double low_p = (double(a.min) - stats[0].max) * scale - stats[0].log_sum;
  const double low_q = (double(b.min) - stats[1].max) * scale - stats[1].log_sum;
  const double high_p = (double(a.max) - stats[0].max) * scale - stats[0].log_sum;
  const double high_q = (double(b.max) - stats[1].max) * scale - stats[1].log_sum;
  return low_p > faintest && low_q > faintest && high_q - low_p < reach && high_p - low_q < reach;
}

// ---------------------------------------------------------------- forward

// The exponentials of stage one, kept for stage two: one row's worth for both sides.
struct Kept {
  float* exps[2];
  Range* ranges[2];
  Ahead* ahead;  // null where threads share the row
};

KULLBACK_INLINE int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// Floats that one row's `Kept` takes; 0 where none is used.
static int64_t pair_kept_floats(const Job& job) {
  if (!logits_at_one_temperature(job) || double_throughout(job) || job.exact_normalizer) return 0;
  return 2 * kBlock * blocks_of(job.num_columns) + 4 * blocks_of(job.num_columns);
}

KULLBACK_INLINE Kept kept_at(const Job& job, float* room, Ahead* ahead) {
  const int64_t blocks = blocks_of(job.num_columns);
  Range* ranges = reinterpret_cast<Range*>(room + 2 * kBlock * blocks);
  return {{room, room + kBlock * blocks}, {ranges, ranges + blocks}, ahead};
}

// Σ e^(x - m) of one block, and its terms in `exps`.
template <class X>
static double exponentials(const X* x, int n, Range range, double scale, float* exps) {
  const float max = range.max;
  if (!((double(range.min) - double(max)) * scale > -87.0)) {
    alignas(64) float room[kBlock];
    for (int i = 0; i < n; ++i) room[i] = widen(x[i]);
    return normalize_block(room, n, scale, exps).sum;
  }
  if (scale == 1.0) {
#pragma omp simd
    for (int i = 0; i < n; ++i) exps[i] = exp_bounded(widen(x[i]) - max);
  } else {
    const float high = float(scale), low = float(scale - double(high));
#pragma omp simd
    for (int i = 0; i < n; ++i) exps[i] = exp_bounded((widen(x[i]) - max) * high + (widen(x[i]) - max) * low);
  }
  double sum = 0.0;  // adding in single precision would round, and that is an error δ of every term
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += double(exps[i]);
  return sum;
}

// Stage one of the columns [from, from + count) of one side, count <= kPiece.
static Normalizer normalize_and_keep(const Job& job, int side, const void* row, int64_t from, int64_t count,
                                     const Kept& kept) {
  constexpr int most = int(kPiece / kBlock);
  const Side& s = job.sides[side];
  alignas(64) float room[kBlock];
  alignas(64) double maxima[most], sums[most];
  Range* ranges = kept.ranges[side] + from / kBlock;
  const int blocks = int(blocks_of(count));
  double max = -kInf;
  for (int k = 0; k < blocks; ++k) {
    const int64_t at = from + int64_t(k) * kBlock;
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    if (kept.ahead != nullptr) Ahead::step(*kept.ahead);
    with_scores(s.dtype, row, at, n, room, [&](const auto* x) {
      ranges[k] = range_of(x, n);
      sums[k] = exponentials(x, n, ranges[k], s.inverse_temperature, kept.exps[side] + at);
    });
    maxima[k] = double(ranges[k].max);
    max = maxima[k] > max ? maxima[k] : max;
  }
  if (blocks == 1) return {max, sums[0]};
  const double base = finite(max);
  const double scale = s.inverse_temperature;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int k = 0; k < blocks; ++k) sum += sums[k] * exp((maxima[k] - base) * scale);
  return {max, sum};
}

// Stage two of the columns [from, from + count), count <= kPiece. `otherwise(at, n)` sums a block that is not safe.
template <class Otherwise>
static void sum_kept(const Job& job, const Row& r, int64_t from, int64_t count, const Kept& kept, Sums& sums,
                     Otherwise otherwise) {
  constexpr int most = int(kPiece / kBlock);
  alignas(64) float rooms[2][kBlock];
  alignas(64) float factors[2][most];
  const int blocks = int(blocks_of(count));
  const double scale = job.sides[0].inverse_temperature;
  const Range* ranges[2];
  for (int side = 0; side < 2; ++side) {
    ranges[side] = kept.ranges[side] + from / kBlock;
    const Range* range = ranges[side];
    const double max = r.stats[side].max, log_sum = r.stats[side].log_sum;
#pragma omp simd
    for (int k = 0; k < blocks; ++k) factors[side][k] = float(exp((double(range[k].max) - max) * scale - log_sum));
  }
  const PairOfRows rows(job, r.stats);
  with_generator(job, [&](const auto& g) {
    for (int k = 0; k < blocks; ++k) {
      const int64_t at = from + int64_t(k) * kBlock;
      const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
      if (kept.ahead != nullptr) Ahead::step(*kept.ahead);
      if (!safe(ranges[0][k], ranges[1][k], r.stats, scale, g.reach)) {
        otherwise(at, n);
        continue;
      }
      with_pair(job, r, at, n, rooms, [&](const auto* a, const auto* b) {
        const FromExponentials source{a, b, kept.exps[0] + at, kept.exps[1] + at, factors[0][k], factors[1][k], rows};
        if (job.stats == nullptr) {
          sum_terms<true>(g, job.edges, n, source, sums, float());
        } else {
          sum_terms<false>(g, job.edges, n, source, sums, float());
        }
      });
    }
    return true;
  });
}

// ---------------------------------------------------------------- backward

// The gradients of one block: `sides` is 1 for p, 2 for q, 3 for both. False where a cell was outside.
template <int sides, class G, class Source>
static bool write_gradients_of(const G& generator, int n, const Source& where, const float* scale, const float* sum_x,
                               float* __restrict to_p, float* __restrict to_q) {
  const G g = generator;
  const Source source = where;
  const Edges none{};
  int outside = 0;
  const float scale_p = scale[0], scale_q = scale[1], sum_p = sum_x[0], sum_q = sum_x[1];
#pragma omp simd reduction(| : outside)
  for (int i = 0; i < n; ++i) {
    const Seen<float> cell = Source::template terms<G>(g, none, source, i);
    outside |= cell.outside;
    if constexpr (sides & 1) to_p[i] = scale_p * (cell.f.dlogp - cell.p * sum_p);
    if constexpr (sides & 2) to_q[i] = scale_q * (cell.f.dlogq - cell.q * sum_q);
  }
  return !outside;
}

template <class G, class Source>
static bool write_gradients_of(const G& g, int n, const Source& source, const float* scale, const float* sum_x,
                               float* const* to) {
  return to[1] == nullptr   ? write_gradients_of<1>(g, n, source, scale, sum_x, to[0], to[1])
         : to[0] == nullptr ? write_gradients_of<2>(g, n, source, scale, sum_x, to[0], to[1])
                            : write_gradients_of<3>(g, n, source, scale, sum_x, to[0], to[1]);
}

// The gradients of the columns [from, from + n), n <= kBlock; false where they must be computed in double.
static bool gradients_of_logits(const Job& job, const Row& r, int64_t from, int n, float* const* to) {
  alignas(64) float rooms[2][kBlock];
  const double over_temperature = job.sides[0].inverse_temperature;
  const float scale = float(r.upstream * over_temperature), scales[2] = {scale, scale};
  const float sum_x[2] = {float(r.stats[0].sum_x), float(r.stats[1].sum_x)};
  const PairOfRows rows(job, r.stats);
  const float to_p = float(exp(-r.stats[0].log_sum)), to_q = float(exp(-r.stats[1].log_sum));
  return with_generator(job, [&](const auto& g) {
    bool is_safe = false;
    with_pair(job, r, from, n, rooms, [&](const auto* a, const auto* b) {
      is_safe = safe(range_of(a, n), range_of(b, n), r.stats, over_temperature, g.reach);
      if (is_safe) write_gradients_of(g, n, FromSafeLogits{a, b, to_p, to_q, rows}, scales, sum_x, to);
    });
    if (is_safe) return true;
    const float* a = load<float>(job.sides[0].dtype, r.data[0], from, n, rooms[0]);
    const float* b = load<float>(job.sides[1].dtype, r.data[1], from, n, rooms[1]);
    return write_gradients_of(g, n, FromLogits{a, b, rows}, scales, sum_x, to);
  });
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
