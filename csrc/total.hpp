// Weighted sums over the rows of several terms, with their gradients, in one pass over the rows.
//
// A row goes through three stages while it is in cache: normalisers, keeping every exponential; values, keeping every
// ∂f/∂log w; and gradients, which are sums of what was kept.
#pragma once

#include "short_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

// ---------------------------------------------------------------- the plan

static bool same_strides(const Job& a, int side_a, const Job& b, int side_b) {
  for (int i = 0; i < a.dims; ++i)
    if (a.sides[side_a].strides[i] != b.sides[side_b].strides[i]) return false;
  return true;
}

static bool same_data(const Job& a, int side_a, const Job& b, int side_b) {
  const Side &x = a.sides[side_a], &y = b.sides[side_b];
  return x.data == y.data && x.dtype == y.dtype && same_strides(a, side_a, b, side_b);
}

static bool adds_in_double(const Total& total, const Term& term) {
  for (int side = 0; side < 2; ++side)
    if (term.outputs[side] >= 0 && total.outputs[term.outputs[side]].dtype == Dtype::float64) return true;
  return false;
}

static Route route_of(const Total& total, const Term& term) {
  const Job& job = term.job;
  if (adds_in_double(total, term) || double_throughout(job)) return Route::general;
  if (is_coarse(job)) return kept_floats(job) > 0 ? Route::coarse : Route::general;
  if (kept_floats(job) > 0) return Route::pair;
  const Side &p = job.sides[0], &q = job.sides[1];
  // the normaliser's error counts to first order in cross-entropy, which is large, and in KL from one class, its equal
  const bool linear =
      job.formula == Formula::cross_entropy || (job.formula == Formula::kl && p.off == 0.0 && p.on == 1.0);
  return linear && p.reading == Reading::labels && q.reading == Reading::logits ? Route::labels : Route::general;
}

// The scores that one side of a term reads; new ones where no other term reads them.
static int find_scores(Plan& plan, int k, int side) {
  const Job& job = plan.total.terms[k].job;
  const bool labels = plan.routes[k] == Route::labels, alone = labels || plan.routes[k] == Route::coarse;
  const bool exact = labels && job.exact_normalizer, adds_below = labels && job.sides[0].off != 0.0;
  int base = -1, power = 1;
  for (int i = 0; i < plan.num_scores; ++i) {
    Scores& s = plan.scores[i];
    const Job& other = plan.total.terms[s.term].job;
    if (!same_data(job, side, other, s.side)) continue;
    const double ratio = job.sides[side].inverse_temperature / other.sides[s.side].inverse_temperature;
    // an exact normaliser is not for a pair, whose two errors cancel near p = q
    if (ratio == 1.0 && s.exact == exact) {
      s.adds_below |= adds_below;
      return i;
    }
    if (alone && s.base < 0 && (ratio == 2.0 || ratio == 3.0 || ratio == 4.0)) {
      base = i;
      power = int(ratio);
    }
  }
  plan.scores[plan.num_scores] = {k, side, base, power, exact, adds_below, 0};
  return plan.num_scores++;
}

KULLBACK_INLINE bool in_double(const Output& out) { return out.dtype == Dtype::float64; }

constexpr int kLaneOutputs = 4;

static bool in_lanes(const Plan& plan) {
  const Total& total = plan.total;
  const Job& any = total.terms[0].job;
  if (any.num_columns > kShort || any.num_rows < kLanes / 4 || total.num_outputs > kLaneOutputs) return false;
  for (int k = 0; k < total.num_terms; ++k)
    if (plan.routes[k] == Route::general || plan.routes[k] == Route::coarse) return false;
  for (int k = 0; k < total.num_outputs; ++k)
    if (in_double(total.outputs[k])) return false;
  return true;
}

static void plan_total(const Total& total, Plan& plan) {
  plan.total = total;
  plan.num_scores = 0;
  for (int k = 0; k < total.num_terms; ++k) plan.routes[k] = route_of(total, total.terms[k]);
  constexpr Route in_order[] = {Route::pair, Route::coarse,
                                Route::labels};  // later ones may use powers of what is kept
  for (const Route route : in_order)
    for (int k = 0; k < total.num_terms; ++k)
      for (int side = 0; side < 2; ++side)
        if (plan.routes[k] == route)
          plan.scores_of[k][side] = is_dense(total.terms[k].job.sides[side]) ? find_scores(plan, k, side) : -1;
  plan.rows_together = in_lanes(plan) ? kLanes : 1;
  const int64_t blocks = blocks_of(total.terms[0].job.num_columns);
  int64_t size = 0;
  for (int i = 0; i < plan.num_scores; ++i) {
    if (plan.scores[i].base >= 0) continue;
    plan.scores[i].kept = size;
    size += (kBlock + 2) * blocks;
    size = (size + 15) / 16 * 16;
  }
  for (int k = 0; k < total.num_terms; ++k)
    for (int side = 0; side < 2; ++side) {
      const Job& job = total.terms[k].job;
      plan.kept_x[k][side] = -1;
      if (plan.routes[k] == Route::coarse && side == dense_side(job) && job.num_rows > 0) {
        size = (size + 1) / 2 * 2;  // doubles
        plan.kept_x[k][side] = size;
        size += 4 * (listed_at(row_of(job, 1 - side, 0)).room + 1);
      }
      if (plan.routes[k] != Route::pair || total.terms[k].outputs[side] < 0) continue;
      plan.kept_x[k][side] = size;
      size += kBlock * blocks;
    }
  plan.kept_floats = size;
}

KULLBACK_INLINE float* exps_of(const Plan& plan, int scores, float* kept) {
  const Scores& s = plan.scores[scores];
  return kept + plan.scores[s.base >= 0 ? s.base : scores].kept;
}

KULLBACK_INLINE Range* ranges_of(const Plan& plan, int scores, float* kept) {
  return reinterpret_cast<Range*>(exps_of(plan, scores, kept) +
                                  kBlock * blocks_of(plan.total.terms[0].job.num_columns));
}

// Without room to keep anything, everything is general.
KULLBACK_INLINE Route route(const Plan& plan, int k, const float* kept) {
  return kept == nullptr ? Route::general : plan.routes[k];
}

static void look_ahead(const Plan& plan, int64_t row, Ahead& a) {
  a.streams = a.now = a.share = 0;
  const Job& any = plan.total.terms[0].job;
  if (row >= any.num_rows) return;
  int64_t lines = 0;
  int steps = 0;
  for (int i = 0; i < plan.num_scores; ++i) {
    const Scores& s = plan.scores[i];
    if (s.base >= 0) continue;
    const Job& job = plan.total.terms[s.term].job;
    lines += Ahead::add(a, job, s.side, row);
    ++steps;
  }
  for (int k = 0; k < plan.total.num_terms; ++k) steps += plan.routes[k] == Route::pair;
  steps += plan.total.num_outputs > 0;
  const int64_t all = steps * blocks_of(any.num_columns);
  if (all > 0) a.share = int((lines + all - 1) / all);
}

// ---------------------------------------------------------------- stage one

template <int power>
KULLBACK_INLINE float raised(float x) {
  return power == 1 ? x : power == 2 ? x * x : power == 3 ? x * x * x : (x * x) * (x * x);
}

template <int power>
static double sum_powers(const float* exps, int n) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += double(raised<power>(exps[i]));
  return sum;
}

static double sum_powers(int power, const float* exps, int n) {
  return power == 2 ? sum_powers<2>(exps, n) : power == 3 ? sum_powers<3>(exps, n) : sum_powers<4>(exps, n);
}

// Σ (x - m) over a block.
template <class X>
static double sum_below(const X* x, int n, float max) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += double(widen(x[i]) - max);
  return sum;
}

KULLBACK_INLINE ScoresPiece merge(ScoresPiece a, ScoresPiece b, int64_t count_a, int64_t count_b, double scale) {
  if (count_a == 0) return b;
  const Normalizer z = merge(Normalizer{a.max, a.sum}, Normalizer{b.max, b.sum}, scale);
  const double to_a = a.max == z.max ? 0.0 : double(count_a) * (a.max - z.max);
  const double to_b = b.max == z.max ? 0.0 : double(count_b) * (b.max - z.max);
  return {z.max, z.sum, (a.below + to_a) + (b.below + to_b)};
}

// The scores `own` and all powers of them, block by block.
static void normalize_scores(const Plan& plan, int own, int64_t row, int64_t from, int64_t count, float* kept,
                             Ahead& ahead, TotalPiece& out) {
  const Scores& s = plan.scores[own];
  const Job& job = plan.total.terms[s.term].job;
  const Side& side = job.sides[s.side];
  const void* data = row_of(job, s.side, row);
  float* exps = exps_of(plan, own, kept);
  Range* ranges = ranges_of(plan, own, kept) + from / kBlock;
  constexpr int most = int(kPiece / kBlock);
  alignas(64) float room[kBlock];
  alignas(64) double maxima[most], sums[2 * kMaxTerms][most];
  const int blocks = int(blocks_of(count));
  double max = -kInf, below = 0.0;
  bool adds_below = false;
  for (int i = own; i < plan.num_scores; ++i)
    adds_below |= (i == own || plan.scores[i].base == own) && plan.scores[i].adds_below;
  for (int k = 0; k < blocks; ++k) {
    const int64_t at = from + int64_t(k) * kBlock;
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    Ahead::step(ahead);
    with_scores(side.dtype, data, at, n, room, [&](const auto* x) {
      ranges[k] = range_of(x, n);
      sums[own][k] = exponentials(x, n, ranges[k], side.inverse_temperature, exps + at);
      if (adds_below) {
        const double block_max = double(ranges[k].max), block_below = sum_below(x, n, ranges[k].max);
        const double m = block_max > max ? block_max : max;
        const double moved = k == 0 || max == m ? 0.0 : double(at - from) * (max - m);
        below = (below + moved) + (block_max == m ? block_below : block_below + double(n) * (block_max - m));
      }
    });
    for (int i = own + 1; i < plan.num_scores; ++i)
      if (plan.scores[i].base == own) sums[i][k] = sum_powers(plan.scores[i].power, exps + at, n);
    maxima[k] = double(ranges[k].max);
    max = maxima[k] > max ? maxima[k] : max;
  }
  const double base = finite(max);
  for (int i = own; i < plan.num_scores; ++i) {
    if (i != own && plan.scores[i].base != own) continue;
    const Scores& each = plan.scores[i];
    const Side& read = plan.total.terms[each.term].job.sides[each.side];
    double sum = 0.0;
    if (each.exact) {
      sum = normalize<double>(read, data, from, count).sum;
    } else if (blocks == 1) {
      sum = sums[i][0];
    } else {
      const double scale = read.inverse_temperature;
#pragma omp simd reduction(+ : sum)
      for (int k = 0; k < blocks; ++k) sum += sums[i][k] * exp((maxima[k] - base) * scale);
    }
    out.scores[i] = {max, sum, below};
  }
}

// Whether any of a row's terms that are not dropped reads these scores, or a power of them.
static bool needed(const Plan& plan, int own, const TotalRow& t) {
  for (int k = 0; k < plan.total.num_terms; ++k) {
    if (t.weight[k] == 0.0 || plan.routes[k] == Route::general) continue;
    for (int side = 0; side < 2; ++side) {
      const int i = plan.scores_of[k][side];
      if (i >= 0 && (i == own || plan.scores[i].base == own)) return true;
    }
  }
  return false;
}

static void total_normalize_piece(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept,
                                  Ahead& ahead, TotalPiece& out) {
  const Total& total = plan.total;
  const int64_t from = piece * kPiece, count = piece_size(total.terms[0].job, piece);
  if (kept != nullptr)
    for (int i = 0; i < plan.num_scores; ++i)
      if (plan.scores[i].base < 0 && needed(plan, i, t)) normalize_scores(plan, i, row, from, count, kept, ahead, out);
  for (int k = 0; k < total.num_terms; ++k)
    if (t.weight[k] != 0.0 && route(plan, k, kept) == Route::general)
      normalize_piece(total.terms[k].job, row, piece, nullptr, out.terms[k]);
}

// Merges a later piece into `all`, which holds the pieces before it.
static void absorb_normalizers(const Plan& plan, int64_t piece, TotalPiece& all, const TotalPiece& next,
                               const float* kept, const TotalRow& t) {
  const Job& any = plan.total.terms[0].job;
  if (kept != nullptr)
    for (int i = 0; i < plan.num_scores; ++i) {
      const Scores& s = plan.scores[i];
      if (!needed(plan, s.base >= 0 ? s.base : i, t)) continue;
      const double scale = plan.total.terms[s.term].job.sides[s.side].inverse_temperature;
      all.scores[i] = merge(all.scores[i], next.scores[i], piece * kPiece, piece_size(any, piece), scale);
    }
  for (int k = 0; k < plan.total.num_terms; ++k) {
    if (t.weight[k] == 0.0 || route(plan, k, kept) != Route::general) continue;
    for (int side = 0; side < 2; ++side) {
      const Normalizer before =
          piece == 0 ? Normalizer{-kInf, 0.0} : Normalizer{all.terms[k].max[side], all.terms[k].sum[side]};
      const Normalizer z = merge(before, {next.terms[k].max[side], next.terms[k].sum[side]},
                                 plan.total.terms[k].job.sides[side].inverse_temperature);
      all.terms[k].max[side] = z.max;
      all.terms[k].sum[side] = z.sum;
    }
  }
}

// -Σ p log q, and Σ p, which is what its gradient needs.
static double cross_entropy_of_labels(const Job& job, int64_t row, const ScoresPiece& z, Stats* stats) {
  const Side &p = job.sides[0], &q = job.sides[1];
  const int64_t label = *static_cast<const int64_t*>(row_of(job, 0, row));
  const double columns = double(job.num_columns);
  double room;
  const double x = *load<double>(q.dtype, row_of(job, 1, row), label, 1, &room);
  finish_normalizer({z.max, z.sum}, stats[1]);
  const double log_sum = stats[1].log_sum, log_q = (x - z.max) * q.inverse_temperature - log_sum;
  stats[0] = {0.0, 0.0, 0.0};
  stats[1].sum_x = -(p.on + (columns - 1.0) * p.off);
  const double all = p.off == 0.0 ? 0.0 : p.off * (z.below * q.inverse_temperature - columns * log_sum);
  const double one = p.on == p.off ? 0.0 : (p.on - p.off) * log_q;
  return -(one + all);
}

static double finish_cells(const Plan& plan, int k, int64_t row, const TotalPiece& all, float* kept, Stats* stats) {
  const Job& job = plan.total.terms[k].job;
  const int dense = dense_side(job), i = plan.scores_of[k][dense];
  const ScoresPiece& z = all.scores[i];
  const KeptExponentials exps = {exps_of(plan, i, kept), ranges_of(plan, i, kept), plan.scores[i].power, z.max, z.sum};
  return finish_coarse(job, row, exps, stats, reinterpret_cast<double*>(kept + plan.kept_x[k][dense]));
}

static void finish_normalizers(const Plan& plan, int64_t row, const TotalPiece& all, float* kept, TotalRow& t) {
  for (int k = 0; k < plan.total.num_terms; ++k) {
    t.value[k] = 0.0;
    if (t.weight[k] == 0.0) continue;
    const Job& job = plan.total.terms[k].job;
    const int* scores = plan.scores_of[k];
    switch (route(plan, k, kept)) {
      case Route::general: merge_normalizers(job, &all.terms[k], 1, t.stats[k]); break;
      case Route::pair:
        for (int side = 0; side < 2; ++side) {
          finish_normalizer({all.scores[scores[side]].max, all.scores[scores[side]].sum}, t.stats[k][side]);
          t.stats[k][side].sum_x = 0.0;
        }
        break;
      case Route::labels: t.value[k] = cross_entropy_of_labels(job, row, all.scores[scores[1]], t.stats[k]); break;
      case Route::coarse: t.value[k] = finish_cells(plan, k, row, all, kept, t.stats[k]);
    }
  }
}

// ---------------------------------------------------------------- stage two

// As `sum_terms`, and keeps x of the sides that are wanted: 1 for p, 2 for q, 3 for both.
template <int sides, class G, class Source>
static void sum_and_keep(const G& generator, int n, const Source& where, Sums& sums, float* __restrict keep_p,
                         float* __restrict keep_q) {
  const G g = generator;
  const Source source = where;
  const Edges none{};
  float value = 0.0f, x_p = 0.0f, x_q = 0.0f;
#pragma omp simd reduction(+ : value, x_p, x_q)
  for (int i = 0; i < n; ++i) {
    const Seen<float> cell = Source::template terms<G>(g, none, source, i);
    const Terms<float> f = cell.f;
    value += f.value;
    if constexpr (sides & 1) {
      keep_p[i] = f.dlogp;
      x_p += f.dlogp;
    }
    if constexpr (sides & 2) {
      keep_q[i] = f.dlogq;
      x_q += f.dlogq;
    }
  }
  sums.value += double(value);
  sums.x[0] += double(x_p);
  sums.x[1] += double(x_q);
}

template <class G, class Source>
static void sum_and_keep(const G& g, int n, const Source& source, Sums& sums, float* const* keep) {
  if (keep[0] == nullptr && keep[1] == nullptr) return sum_and_keep<0>(g, n, source, sums, keep[0], keep[1]);
  if (keep[0] == nullptr) return sum_and_keep<2>(g, n, source, sums, keep[0], keep[1]);
  if (keep[1] == nullptr) return sum_and_keep<1>(g, n, source, sums, keep[0], keep[1]);
  return sum_and_keep<3>(g, n, source, sums, keep[0], keep[1]);
}

// e^m / Z of a block, m its largest score.
KULLBACK_INLINE float factor_of(const Range& range, const Stats& stats, double scale) {
  return float(exp((double(range.max) - stats.max) * scale - stats.log_sum));
}

static void sum_pair(const Plan& plan, int k, const TotalRow& t, int64_t row, int64_t from, int64_t count, float* kept,
                     Ahead& ahead, Piece& out) {
  const Job& job = plan.total.terms[k].job;
  const Row r = find_row(job, row, t.stats[k]);
  const int* scores = plan.scores_of[k];
  const float* exps[2] = {exps_of(plan, scores[0], kept), exps_of(plan, scores[1], kept)};
  const Range* ranges[2] = {ranges_of(plan, scores[0], kept), ranges_of(plan, scores[1], kept)};
  const double scale = job.sides[0].inverse_temperature;
  const PairOfRows rows(job, r.stats);
  Sums sums = {0.0, {0.0, 0.0}};
  Block<float> b;
  with_generator(job, [&](const auto& g) {
    for (int64_t at = from; at < from + count; at += kBlock) {
      const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
      Ahead::step(ahead);
      const Range &range_a = ranges[0][at / kBlock], &range_b = ranges[1][at / kBlock];
      if (!safe(range_a, range_b, r.stats, scale, g.reach)) {
        if (!sum_block_in_single(job, r, at, n, sums, b)) sum_block_in_double(job, r, at, n, sums);
        continue;
      }
      float* keep[2];
      for (int side = 0; side < 2; ++side)
        keep[side] = plan.kept_x[k][side] < 0 ? nullptr : kept + plan.kept_x[k][side] + at;
      const float to_p = factor_of(range_a, r.stats[0], scale), to_q = factor_of(range_b, r.stats[1], scale);
      with_pair(job, r, at, n, b.w, [&](const auto* x, const auto* y) {
        sum_and_keep(g, n, FromExponentials{x, y, exps[0] + at, exps[1] + at, to_p, to_q, rows}, sums, keep);
      });
    }
    return true;
  });
  out.value = sums.value;
  out.sum_x[0] = sums.x[0];
  out.sum_x[1] = sums.x[1];
}

static void total_sum_piece(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept, Ahead& ahead,
                            TotalPiece& out) {
  const int64_t from = piece * kPiece, count = piece_size(plan.total.terms[0].job, piece);
  for (int k = 0; k < plan.total.num_terms; ++k) {
    if (t.weight[k] == 0.0) continue;
    const Route how = route(plan, k, kept);
    if (how == Route::pair) sum_pair(plan, k, t, row, from, count, kept, ahead, out.terms[k]);
    if (how == Route::general) sum_piece(plan.total.terms[k].job, row, piece, t.stats[k], nullptr, out.terms[k]);
  }
}

static void absorb_sums(const Plan& plan, int64_t piece, const TotalPiece& next, const float* kept, TotalRow& t) {
  for (int k = 0; k < plan.total.num_terms; ++k) {
    const Route how = route(plan, k, kept);
    if (t.weight[k] == 0.0 || how == Route::labels || how == Route::coarse) continue;
    if (is_coarse(plan.total.terms[k].job)) {
      if (piece == 0) t.value[k] = take_coarse(plan.total.terms[k].job, next.terms[k], t.stats[k]);
      continue;
    }
    if (piece == 0) t.stats[k][0].sum_x = t.stats[k][1].sum_x = 0.0;
    t.value[k] += next.terms[k].value;
    for (int side = 0; side < 2; ++side) t.stats[k][side].sum_x += next.terms[k].sum_x[side];
  }
}

// ---------------------------------------------------------------- stage three

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

// sum += a x - c e, or sum = that where it is the first.
static void add_pair(bool first, int n, float a, const float* x, float c, const float* exps, float* __restrict sum) {
  if (first) {
#pragma omp simd
    for (int i = 0; i < n; ++i) sum[i] = a * x[i] - c * exps[i];
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) sum[i] += a * x[i] - c * exps[i];
  }
}

template <int power>
static void add_labels(int n, float c, const float* exps, float off, float* __restrict sum) {
#pragma omp simd
  for (int i = 0; i < n; ++i) sum[i] += c * raised<power>(exps[i]) - off;
}

static void add_labels(int power, int n, float c, const float* exps, float off, float* sum) {
  switch (power) {
    case 1: return add_labels<1>(n, c, exps, off, sum);
    case 2: return add_labels<2>(n, c, exps, off, sum);
    case 3: return add_labels<3>(n, c, exps, off, sum);
    default: return add_labels<4>(n, c, exps, off, sum);
  }
}

// Past the caches: what is large is read by others, later. `fence` before another thread may read it.
static void stream(float* out, const float* values, int n) {
  int i = 0;
#if defined(__AVX512F__) || defined(__SSE2__)
#ifdef __AVX512F__
  constexpr int lanes = 16;
#else
  constexpr int lanes = 4;
#endif
  typedef float Vector __attribute__((vector_size(4 * lanes)));
  for (; i < n && (reinterpret_cast<uintptr_t>(out + i) & (4 * lanes - 1)) != 0; ++i) out[i] = values[i];
  for (; i + lanes <= n; i += lanes) {
    Vector v;
    __builtin_memcpy(&v, values + i, 4 * lanes);
#ifdef __AVX512F__
    __builtin_ia32_movntps512(out + i, v);
#else
    __builtin_ia32_movntps(out + i, v);
#endif
  }
#endif
  for (; i < n; ++i) out[i] = values[i];
}

KULLBACK_INLINE void fence() {
#ifdef __SSE2__
  __builtin_ia32_sfence();
#endif
}

// Whether a gradient is written over what a term reads: then a block is summed elsewhere first.
KULLBACK_INLINE bool overwrites(const Total& total, const Output& out) {
  for (int k = 0; k < total.num_terms; ++k)
    for (const Side& side : total.terms[k].job.sides)
      if (side.data == out.data) return true;
  return false;
}

KULLBACK_INLINE bool streams(const Total& total, const Output& out) {
  const Job& any = total.terms[0].job;
  return out.dtype == Dtype::float32 && any.num_rows * any.num_columns >= int64_t(1) << 23;
}

// The sums of one block that are under way: a term writes where nothing has been written, else adds.
template <class T>
struct Under {
  T* sums[kMaxOutputs];
  bool begun[kMaxOutputs];

  static void begin(Under& u, int output, int n) {
    if (u.begun[output]) return;
    for (int i = 0; i < n; ++i) u.sums[output][i] = T(0);
    u.begun[output] = true;
  }
};

// A coarse term's block; false where it must be computed in double.
static bool add_cells(const Plan& plan, int k, const Row& r, int64_t at, int n, float* kept, Under<float>& under) {
  const Term& term = plan.total.terms[k];
  const Job& job = term.job;
  const int dense = dense_side(job), scores = plan.scores_of[k][dense], to = term.outputs[dense];
  const Listed l = listed_at(r.data[1 - dense]);
  const double scale = scale_of(job, dense, r.upstream),
               in_block = double(ranges_of(plan, scores, kept)[at / kBlock].max);
  const double log_factor =
      (in_block - r.stats[dense].max) * job.sides[dense].inverse_temperature - r.stats[dense].log_sum;
  const float c = float(scale * outside_factor(job, r.stats) * exp(log_factor));
  if (!(magnitude(c) < kSafe)) return false;
  Under<float>::begin(under, to, n);
  float* sums = under.sums[to];
  const double* x = reinterpret_cast<const double*>(kept + plan.kept_x[k][dense]);
  const double *w = x + l.count + 1, sum_x = r.stats[dense].sum_x;
  const int64_t first = first_from(l, at);
  float before[kBlock];
  int64_t last = first;
  for (; last < l.count && l.ids[last] < at + n; ++last) before[last - first] = sums[l.ids[last] - at];
  add_labels(plan.scores[scores].power, n, c, exps_of(plan, scores, kept) + at, 0.0f, sums);
  // what is outside of the list may be far larger than its share of a listed class: it is put, not corrected
  for (int64_t i = first; i < last; ++i) sums[l.ids[i] - at] = before[i - first] + float(scale * (x[i] - w[i] * sum_x));
  return true;
}

static void add_block(const Plan& plan, int k, const Row& r, int64_t at, int n, bool wide, float* kept,
                      Under<float>& under) {
  const Term& term = plan.total.terms[k];
  const Job& job = term.job;
  const int* scores = plan.scores_of[k];
  const Route how = wide ? Route::general : route(plan, k, kept);
  if (how == Route::labels) {
    const int to = term.outputs[1], power = plan.scores[scores[1]].power;
    const Side &p = job.sides[0], &q = job.sides[1];
    const double scale = scale_of(job, 1, r.upstream);
    const float factor = factor_of(ranges_of(plan, scores[1], kept)[at / kBlock], r.stats[1], q.inverse_temperature);
    const float c = float(-scale * r.stats[1].sum_x) * factor;
    Under<float>::begin(under, to, n);
    add_labels(power, n, c, exps_of(plan, scores[1], kept) + at, float(scale * p.off), under.sums[to]);
    const int64_t label = r.label[0];
    if (label >= at && label < at + n) under.sums[to][label - at] -= float(scale * (p.on - p.off));
    return;
  }
  if (how == Route::coarse && add_cells(plan, k, r, at, n, kept, under)) return;
  if (how == Route::pair) {
    const double over_temperature = job.sides[0].inverse_temperature;
    const Range range[2] = {ranges_of(plan, scores[0], kept)[at / kBlock],
                            ranges_of(plan, scores[1], kept)[at / kBlock]};
    bool is_safe = false;
    with_generator(
        job, [&](const auto& g) { return is_safe = safe(range[0], range[1], r.stats, over_temperature, g.reach); });
    if (is_safe) {
      const float scale = float(scale_of(job, 0, r.upstream));
      for (int side = 0; side < 2; ++side) {
        const int to = term.outputs[side];
        if (to < 0) continue;
        const float c = scale * float(r.stats[side].sum_x) * factor_of(range[side], r.stats[side], over_temperature);
        add_pair(!under.begun[to], n, scale, kept + plan.kept_x[k][side] + at, c,
                 exps_of(plan, scores[side], kept) + at, under.sums[to]);
        under.begun[to] = true;
      }
      return;
    }
  }
  for (int side = 0; side < 2; ++side)
    if (term.outputs[side] >= 0) Under<float>::begin(under, term.outputs[side], n);
  add_gradients(term, r, at, n, wide, under.sums);
}

static void add_block(const Plan& plan, int k, const Row& r, int64_t at, int n, bool wide, float*,
                      Under<double>& under) {
  const Term& term = plan.total.terms[k];
  for (int side = 0; side < 2; ++side)
    if (term.outputs[side] >= 0) Under<double>::begin(under, term.outputs[side], n);
  add_gradients(term, r, at, n, wide, under.sums);
}

// The outputs of one width: float64 is added in double, all others in single precision.
template <class T>
static void total_gradients(const Plan& plan, const TotalRow& t, int64_t row, int64_t from, int64_t count, float* kept,
                            Ahead& ahead) {
  constexpr bool is_double = Same<T, double>::value;
  const Total& total = plan.total;
  const int64_t columns = total.terms[0].job.num_columns;
  Row rows[kMaxTerms];
  bool wide[kMaxTerms], live[kMaxTerms];
  for (int k = 0; k < total.num_terms; ++k) {
    const Term& term = total.terms[k];
    bool sends = false;
    for (int side = 0; side < 2; ++side)
      sends |= term.outputs[side] >= 0 && in_double(total.outputs[term.outputs[side]]) == is_double;
    live[k] = sends && t.weight[k] != 0.0 && magnitude(t.value[k]) != kInf;
    if (!live[k]) continue;
    rows[k] = find_row(term.job, row, t.stats[k]);
    rows[k].value = t.value[k];
    rows[k].upstream = t.weight[k];
    wide[k] = wide_gradients(term.job, rows[k]);
  }
  alignas(64) T room[kMaxOutputs][kBlock];
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    Ahead::step(ahead);
    Under<T> under;
    for (int k = 0; k < total.num_outputs; ++k) {
      const Output& out = total.outputs[k];
      const bool in_place =
          !is_double && out.dtype == Dtype::float32 && !streams(total, out) && !overwrites(total, out);
      under.sums[k] = in_place ? static_cast<T*>(out.data) + row * columns + at : room[k];
      under.begun[k] = false;
    }
    for (int k = 0; k < total.num_terms; ++k)
      if (live[k]) add_block(plan, k, rows[k], at, n, wide[k], kept, under);
    for (int k = 0; k < total.num_outputs; ++k) {
      const Output& out = total.outputs[k];
      if (in_double(out) != is_double) continue;
      Under<T>::begin(under, k, n);
      if (under.sums[k] != room[k]) continue;
      if constexpr (!is_double) {
        if (streams(total, out)) {
          stream(static_cast<float*>(out.data) + row * columns + at, room[k], n);
          continue;
        }
      }
      store<T>(out.dtype, static_cast<char*>(out.data) + size_of(out.dtype) * row * columns, at, n, room[k]);
    }
  }
  fence();
}

static void total_gradient_piece(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept,
                                 Ahead& ahead) {
  const int64_t from = piece * kPiece, count = piece_size(plan.total.terms[0].job, piece);
  bool any[2] = {false, false};
  for (int k = 0; k < plan.total.num_outputs; ++k) any[in_double(plan.total.outputs[k])] = true;
  if (any[0]) total_gradients<float>(plan, t, row, from, count, kept, ahead);
  if (any[1]) total_gradients<double>(plan, t, row, from, count, kept, ahead);
}

// ---------------------------------------------------------------- rows

static void normalize_shared(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept,
                             TotalPiece& out) {
  Ahead nothing{};
  total_normalize_piece(plan, t, row, piece, kept, nothing, out);
}

static void sum_shared(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept, TotalPiece& out) {
  Ahead nothing{};
  total_sum_piece(plan, t, row, piece, kept, nothing, out);
}

static void gradient_shared(const Plan& plan, const TotalRow& t, int64_t row, int64_t piece, float* kept) {
  Ahead nothing{};
  total_gradient_piece(plan, t, row, piece, kept, nothing);
}

// Adds w·D of a row to each term's sum, and keeps it where that is asked for.
static void total_count(const Plan& plan, int64_t row, const TotalRow& t, double* sums) {
  const Total& total = plan.total;
  for (int k = 0; k < total.num_terms; ++k) {
    const double counted = t.weight[k] != 0.0 ? t.weight[k] * t.value[k] : 0.0;
    sums[k] += counted;
    if (total.rows != nullptr) total.rows[k * total.terms[k].job.num_rows + row] = counted;
  }
}

static void total_weights(const Plan& plan, int64_t row, TotalRow& t) {
  for (int k = 0; k < plan.total.num_terms; ++k) {
    const Term& term = plan.total.terms[k];
    t.weight[k] = term.weights[offset_of(term.job, term.weight_strides, row)];
  }
}

static void total_merge_normalizers(const Plan& plan, int64_t row, const TotalPiece* pieces, int64_t count, float* kept,
                                    TotalRow& t) {
  TotalPiece all;
  for (int64_t i = 0; i < count; ++i) absorb_normalizers(plan, i, all, pieces[i], kept, t);
  finish_normalizers(plan, row, all, kept, t);
}

static void total_merge_sums(const Plan& plan, const TotalPiece* pieces, int64_t count, const float* kept,
                             TotalRow& t) {
  for (int64_t i = 0; i < count; ++i) absorb_sums(plan, i, pieces[i], kept, t);
}

// Piece by piece in order: the same bits as if threads had shared the pieces.
static void total_row(const Plan& plan, int64_t row, float* kept, TotalRow& t) {
  const int64_t count = pieces_of(plan.total.terms[0].job);
  TotalPiece all, piece;
  Ahead ahead;
  look_ahead(plan, row + 1, ahead);
  for (int64_t i = 0; i < count; ++i) {
    total_normalize_piece(plan, t, row, i, kept, ahead, piece);
    absorb_normalizers(plan, i, all, piece, kept, t);
  }
  finish_normalizers(plan, row, all, kept, t);
  for (int64_t i = 0; i < count; ++i) {
    total_sum_piece(plan, t, row, i, kept, ahead, piece);
    absorb_sums(plan, i, piece, kept, t);
  }
  if (plan.total.num_outputs > 0)
    for (int64_t i = 0; i < count; ++i) total_gradient_piece(plan, t, row, i, kept, ahead);
}

// ---------------------------------------------------------------- short rows

struct TotalLanes {
  alignas(64) float sums[kLaneOutputs][kShort * kLanes];
  alignas(64) float x[2][kShort * kLanes];
  double weight[kMaxTerms][kLanes], value[kMaxTerms][kLanes];
  bool alone[kLanes];  // rows that a long row's loops must compute
};

// One column of every lane, its x kept.
template <class G>
static void keep_column(const G& generator, const Lanes& t, int v, float scale, float* __restrict value,
                        float* __restrict sum_p, float* __restrict sum_q, float* __restrict keep_p,
                        float* __restrict keep_q) {
  const G g = generator;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    const Seen<float> cell = terms_of_lane(g, t, v, r, scale);
    value[r] += cell.f.value;
    sum_p[r] += cell.f.dlogp;
    sum_q[r] += cell.f.dlogq;
    keep_p[r] = cell.f.dlogp;
    keep_q[r] = cell.f.dlogq;
  }
}

static void pair_in_lanes(const Plan& plan, int k, const int* live, Lanes& t, TotalLanes& all) {
  const Term& term = plan.total.terms[k];
  const Job& job = term.job;
  const int columns = int(job.num_columns);
  const float over_temperature = float(job.sides[0].inverse_temperature);
  alignas(64) float value[kLanes] = {}, sum_x[2][kLanes] = {}, scale[kLanes];
  with_generator(job, [&](const auto& g) {
    prepare_lanes(job, t, g.reach);
    for (int v = 0; v < columns; ++v)
      keep_column(g, t, v, over_temperature, value, sum_x[0], sum_x[1], all.x[0] + v * kLanes, all.x[1] + v * kLanes);
    return true;
  });
  for (int r = 0; r < kLanes; ++r) {
    const double s = scale_of(job, 0, all.weight[k][r]);
    all.value[k][r] = double(value[r]);
    scale[r] = float(s);
    const bool wide = !(magnitude(sum_x[0][r]) < kSafe) || !(magnitude(sum_x[1][r]) < kSafe);
    all.alone[r] |= live[r] && (t.alone[r] || !moderate(s) || wide);
  }
  for (int side = 0; side < 2; ++side) {
    if (term.outputs[side] < 0) continue;
    float* sums = all.sums[term.outputs[side]];
    const float *x = all.x[side], *exps = t.exps[side], *to_weight = t.to_weight[side], *sum = sum_x[side];
    for (int v = 0; v < columns; ++v) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) {
        const float sent = scale[r] * (x[v * kLanes + r] - exps[v * kLanes + r] * to_weight[r] * sum[r]);
        sums[v * kLanes + r] += live[r] ? sent : 0.0f;
      }
    }
  }
}

static void labels_in_lanes(const Plan& plan, int k, int64_t first, int count, const int* live, Lanes& t,
                            TotalLanes& all) {
  const Term& term = plan.total.terms[k];
  const Job& job = term.job;
  const Side &p = job.sides[0], &q = job.sides[1];
  const int columns = int(job.num_columns), to = term.outputs[1];
  alignas(64) float factor[kLanes], off[kLanes];
  double below[kLanes] = {};
  if (p.off != 0.0)
    for (int v = 0; v < columns; ++v)
      for (int r = 0; r < kLanes; ++r) below[r] += double(t.cells[1][v * kLanes + r]) - double(t.max[1][r]);
  for (int r = 0; r < kLanes; ++r) {
    factor[r] = off[r] = 0.0f;
    if (!live[r] || r >= count) continue;
    const double scale = scale_of(job, 1, all.weight[k][r]), max = double(t.max[1][r]);
    const ScoresPiece z = {max, exp(t.log_sum_d[1][r]), below[r]};
    Stats stats[2];
    all.value[k][r] = cross_entropy_of_labels(job, first + r, z, stats);
    const bool narrow =
        (double(t.min[1][r]) - max) * q.inverse_temperature > -80.0 && magnitude(all.value[k][r]) < kInf;
    all.alone[r] |= !narrow || !moderate(scale);
    factor[r] = float(-scale * stats[1].sum_x * exp(-t.log_sum_d[1][r]));
    off[r] = float(scale * p.off);
    if (to >= 0) {
      const int64_t label = *static_cast<const int64_t*>(row_of(job, 0, first + r));
      all.sums[to][label * kLanes + r] -= float(scale * (p.on - p.off));
    }
  }
  if (to < 0) return;
  for (int v = 0; v < columns; ++v) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r)
      all.sums[to][v * kLanes + r] += live[r] ? factor[r] * t.exps[1][v * kLanes + r] - off[r] : 0.0f;
  }
}

static void total_lanes(const Plan& plan, int64_t first, int count, double* sums) {
  const Total& total = plan.total;
  const int columns = int(total.terms[0].job.num_columns);
  TotalLanes all;
  for (int k = 0; k < total.num_outputs; ++k)
    for (int i = 0; i < columns * kLanes; ++i) all.sums[k][i] = 0.0f;
  for (int r = 0; r < kLanes; ++r) all.alone[r] = false;
  for (int k = 0; k < total.num_terms; ++k) {
    const Term& term = total.terms[k];
    const Job& job = term.job;
    const int from = plan.routes[k] == Route::labels ? 1 : 0;
    alignas(64) int live[kLanes];
    alignas(64) double exp_sums[2][kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const double weight = r < count ? term.weights[offset_of(job, term.weight_strides, first + r)] : 0.0;
      all.weight[k][r] = weight;
      all.value[k][r] = 0.0;
      live[r] = weight != 0.0;
    }
    Lanes t;
    gather(job, from, first, count, t);
    find_ranges(columns, from, t);
    find_exponentials(job, from, t, exp_sums);
    for (int side = from; side < 2; ++side) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) t.log_sum_d[side][r] = log(exp_sums[side][r]);
    }
    if (from == 0) {
      pair_in_lanes(plan, k, live, t, all);
    } else {
      labels_in_lanes(plan, k, first, count, live, t, all);
    }
  }
  for (int r = 0; r < count; ++r) {
    const int64_t row = first + r;
    TotalRow t;
    for (int k = 0; k < total.num_terms; ++k) {
      t.weight[k] = all.weight[k][r];
      t.value[k] = all.value[k][r];
    }
    if (all.alone[r]) total_row(plan, row, nullptr, t);
    total_count(plan, row, t, sums);
    if (all.alone[r]) continue;
    for (int k = 0; k < total.num_outputs; ++k) {
      float room[kShort];
      for (int v = 0; v < columns; ++v) room[v] = all.sums[k][v * kLanes + r];
      const Output& out = total.outputs[k];
      store<float>(out.dtype, static_cast<char*>(out.data) + size_of(out.dtype) * row * columns, 0, columns, room);
    }
  }
}

static void total_rows(const Plan& plan, int64_t first, int64_t last, float* kept, double* sums) {
  if (plan.rows_together > 1) {
    for (int64_t row = first; row < last; row += kLanes)
      total_lanes(plan, row, int(last - row < kLanes ? last - row : kLanes), sums);
    return;
  }
  for (int64_t row = first; row < last; ++row) {
    TotalRow t;
    total_weights(plan, row, t);
    total_row(plan, row, kept, t);
    total_count(plan, row, t, sums);
  }
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
