// Rows of any length, block by block.
#pragma once

#include "coarse.hpp"

namespace kullback {
namespace KULLBACK_ISA {

// Weights of both sides of one block in single precision, and what may be done with them.
static Kind weigh_block(const Job& job, const Row& r, int64_t from, int n, Block<float>& b) {
  const bool no_p = gone(job.sides[0], r.data[0], r.label[0], from, n);
  const bool no_q = gone(job.sides[1], r.data[1], r.label[1], from, n);
  if ((no_p && job.edges.at_zero[0] == kInf) || (no_q && job.edges.at_zero[1] == kInf)) return Kind::redo;
  bool fine = true;
  for (int side = 0; side < 2; ++side)
    if (side == 0 ? !no_p : !no_q)
      fine &= weigh<float>(job.sides[side], r.data[side], r.label[side], from, n, r.stats[side], b.room, b.log_w[side],
                           b.w[side]);
  return !fine ? Kind::redo : no_p ? Kind::p_gone : no_q ? Kind::q_gone : Kind::both;
}

static void weigh_block(const Job& job, const Row& r, int64_t from, int n, Block<double>& b) {
  for (int side = 0; side < 2; ++side)
    weigh<double>(job.sides[side], r.data[side], r.label[side], from, n, r.stats[side], b.room, b.log_w[side],
                  b.w[side]);
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
    return sum_formula<float>(job, n, FromLogits{x, y, PairOfRows(job, r.stats)}, sums);
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

// Stage two of the columns [from, from + count); `kept` holds what stage one kept, or null.
static void sum_columns(const Job& job, const Row& r, int64_t from, int64_t count, float* kept, Ahead* ahead,
                        Piece& piece) {
  if (job.formula == Formula::log_affinity) {
    Normalizer all = {-kInf, 0.0};
    double odd = 0.0;  // NaN where a score is: max and sum alone could not tell NaN from +inf
    Block<double> b;
    for (int64_t at = from; at < from + count; at += kBlock) {
      const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
      weigh_block(job, r, at, n, b);
      affinity_scores(job.parameter, n, b.log_w[0], b.log_w[1], b.value);
      all = merge(all, normalize_block(b.value, n, 1.0), 1.0);
      for (int i = 0; i < n; ++i) odd = b.value[i] == b.value[i] ? odd : b.value[i];
    }
    piece.max[0] = all.max;
    piece.sum[0] = all.sum;
    piece.value = odd;
    return;
  }
  Sums sums = {0.0, {0.0, 0.0}};
  const bool wide = double_throughout(job);
  Block<float> b;
  const auto sum_block = [&](int64_t at, int n) {
    if (wide || !sum_block_in_single(job, r, at, n, sums, b)) sum_block_in_double(job, r, at, n, sums);
  };
  if (kept != nullptr) {
    sum_kept(job, r, from, count, kept_at(job, kept, ahead), sums, sum_block);
  } else {
    for (int64_t at = from; at < from + count; at += kBlock) {
      if (ahead != nullptr) Ahead::step(*ahead);
      sum_block(at, int(from + count - at < kBlock ? from + count - at : kBlock));
    }
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

// `kept`: room of `kept_floats` for the row, or null.
static void normalize_piece(const Job& job, int64_t row, int64_t piece, float* kept, Ahead* ahead, Piece& out) {
  const int64_t from = piece * kPiece, count = piece_size(job, piece);
  if (is_coarse(job)) {
    const int dense = dense_side(job);
    out.max[0] = out.max[1] = out.sum[0] = out.sum[1] = 0.0;
    if (kept == nullptr) return;
    const Normalizer z =
        normalize_and_keep(job, dense, row_of(job, dense, row), from, count, coarse_kept_at(job, kept, ahead));
    out.max[dense] = z.max;
    out.sum[dense] = z.sum;
    return;
  }
  for (int side = 0; side < 2; ++side) {
    const void* data = row_of(job, side, row);
    const Normalizer z = kept != nullptr ? normalize_and_keep(job, side, data, from, count, kept_at(job, kept, ahead))
                                         : normalize_side(job, side, data, from, count);
    out.max[side] = z.max;
    out.sum[side] = z.sum;
  }
}

static void normalize_piece(const Job& job, int64_t row, int64_t piece, float* kept, Piece& out) {
  normalize_piece(job, row, piece, kept, nullptr, out);
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

static void sum_piece(const Job& job, int64_t row, int64_t piece, const Stats* stats, float* kept, Piece& out) {
  if (is_coarse(job)) {
    Stats own[2] = {stats[0], stats[1]};
    if (piece == 0) give_coarse(job, finish_coarse(job, row, kept, own), own, out);
    return;
  }
  sum_columns(job, find_row(job, row, stats), piece * kPiece, piece_size(job, piece), kept, nullptr, out);
}

static void finish_row(const Job& job, int64_t row, const Stats* stats, double value) {
  store_value(job, row, value);
  if (job.stats == nullptr) return;
  job.stats[2 * row] = stats[0];
  job.stats[2 * row + 1] = stats[1];
}

// A row's value; its sums of x go to `stats`.
static double merge_sums(const Job& job, const Piece* pieces, int64_t count, Stats* stats) {
  if (is_coarse(job)) return take_coarse(job, pieces[0], stats);
  if (job.formula == Formula::log_affinity) {
    Normalizer all = {-kInf, 0.0};
    double odd = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      all = merge(all, {pieces[i].max[0], pieces[i].sum[0]}, 1.0);
      odd += pieces[i].value;
    }
    const double value = magnitude(all.max) == kInf ? all.max : all.max + log(all.sum);
    stats[0].sum_x = job.parameter;
    stats[1].sum_x = 1.0 - job.parameter;
    return value + odd;
  }
  double value = 0.0;
  stats[0].sum_x = stats[1].sum_x = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    value += pieces[i].value;
    stats[0].sum_x += pieces[i].sum_x[0];
    stats[1].sum_x += pieces[i].sum_x[1];
  }
  return value;
}

// One row, piece by piece in order: the same bits as if threads had shared the pieces.
static double sum_row(const Job& job, int64_t row, float* kept, Stats* stats) {
  const int64_t count = pieces_of(job);
  Ahead ahead{};
  if (kept != nullptr && row + 1 < job.num_rows) {
    const int64_t lines = Ahead::add(ahead, job, 0, row + 1) + Ahead::add(ahead, job, 1, row + 1);
    const int64_t steps = 3 * blocks_of(job.num_columns);  // two sides in stage one, one block of both in stage two
    ahead.share = int((lines + steps - 1) / steps);
  }
  Normalizer z[2] = {{-kInf, 0.0}, {-kInf, 0.0}};
  for (int64_t i = 0; i < count; ++i) {
    Piece piece;
    normalize_piece(job, row, i, kept, &ahead, piece);
    for (int side = 0; side < 2; ++side)
      z[side] = merge(z[side], {piece.max[side], piece.sum[side]}, job.sides[side].inverse_temperature);
  }
  Piece one;
  for (int side = 0; side < 2; ++side) {
    one.max[side] = z[side].max;
    one.sum[side] = z[side].sum;
  }
  merge_normalizers(job, &one, 1, stats);
  if (is_coarse(job)) return finish_coarse(job, row, kept, stats);
  Piece total;
  total.max[0] = -kInf;
  total.sum[0] = total.value = total.sum_x[0] = total.sum_x[1] = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    Piece piece;
    sum_columns(job, find_row(job, row, stats), i * kPiece, piece_size(job, i), kept, &ahead, piece);
    if (job.formula == Formula::log_affinity) {
      const Normalizer sum = merge({total.max[0], total.sum[0]}, {piece.max[0], piece.sum[0]}, 1.0);
      total.max[0] = sum.max;
      total.sum[0] = sum.sum;
      total.value += piece.value;
    } else {
      total.value += piece.value;
      total.sum_x[0] += piece.sum_x[0];
      total.sum_x[1] += piece.sum_x[1];
    }
  }
  return merge_sums(job, &total, 1, stats);
}

static void forward_long_row(const Job& job, int64_t row, float* kept) {
  Stats stats[2];
  const double value = sum_row(job, row, kept, stats);
  finish_row(job, row, stats, value);
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

// The gradients of n <= kBlock cells go to `to`, of which a side that is not wanted is null.
template <class T>
static void pull_back_block(const Job& job, const Row& r, int n, const Block<T>& b, T* const* to) {
  for (int side = 0; side < 2; ++side)
    if (to[side] != nullptr)
      pull_back<T>(job, side, n, scale_of(job, side, r.upstream), r.stats[side].sum_x, b.w[side], b.log_w[1 - side],
                   b.x[side], to[side]);
}

static void gradients_in_double(const Job& job, const Row& r, int64_t from, int n, double* const* to) {
  if (is_coarse(job)) {
    const int dense = dense_side(job);
    return coarse_gradients(job, r, scale_of(job, dense, r.upstream), from, n, to[dense]);
  }
  Block<double> b;
  weigh_block(job, r, from, n, b);
  if (job.formula == Formula::log_affinity) {
    affinity_x(job, r, n, b);
  } else {
    write_formula(job, n, b);
  }
  pull_back_block(job, r, n, b, to);
}

// False where they must be computed in double; `to` then holds nothing of use.
static bool gradients_in_single(const Job& job, const Row& r, int64_t from, int n, float* const* to, Block<float>& b) {
  if (is_coarse(job)) return false;
  if (logits_at_one_temperature(job)) return gradients_of_logits(job, r, from, n, to);
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
  pull_back_block(job, r, n, b, to);
  return true;
}

static bool moderate(double x) {
  return x == 0.0 || (magnitude(x) < double(kSafe) && magnitude(x) > 1.0 / double(kSafe));
}

// Whether a row's gradients are beyond single precision whatever its cells are.
static bool wide_gradients(const Job& job, const Row& r) {
  if (double_throughout(job)) return true;
  for (int side = 0; side < 2; ++side)
    if (!moderate(scale_of(job, side, r.upstream)) || !(magnitude(r.stats[side].sum_x) < double(kSafe))) return true;
  return false;
}

// The gradient of a coarse row's logits in single precision; false where it must be computed in double.
static bool coarse_columns(const Job& job, const Row& r, int64_t from, int64_t count, void* out) {
  const int dense = dense_side(job);
  const Side& s = job.sides[dense];
  const double scale = scale_of(job, dense, r.upstream);
  const float c = float(scale * outside_factor(job, r.stats));
  if (!moderate(c)) return false;
  Block<float> b;
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    weigh<float>(s, r.data[dense], -1, at, n, r.stats[dense], b.room, b.log_w[dense], b.w[dense]);
#pragma omp simd
    for (int i = 0; i < n; ++i) b.value[i] = c * b.w[dense][i];
    store<float>(s.dtype, out, at, n, b.value);
  }
  each_listed(job, r, scale, from, count,
              [&](int64_t id, double gradient) { store<double>(s.dtype, out, id, 1, &gradient); });
  return true;
}

static void backward_columns(const Job& job, int64_t row, int64_t from, int64_t count) {
  const double value = job.values[row], upstream = upstream_of(job, row);
  const bool silent = magnitude(value) == kInf || upstream == 0.0;
  char* out[2];
  for (int side = 0; side < 2; ++side) {
    const int64_t size = size_of(job.sides[side].dtype);
    out[side] = job.gradients[side] == nullptr ? nullptr
                                               : static_cast<char*>(job.gradients[side]) + size * row * job.num_columns;
    if (silent && out[side] != nullptr) __builtin_memset(out[side] + size * from, 0, size_t(size * count));
  }
  if (silent || (out[0] == nullptr && out[1] == nullptr)) return;
  Row r = find_row(job, row, job.stats + 2 * row);
  r.value = value;
  r.upstream = upstream;
  const bool wide = wide_gradients(job, r);
  if (is_coarse(job) && !wide && coarse_columns(job, r, from, count, out[dense_side(job)])) return;
  Block<float> b;
  alignas(64) float narrow[2][kBlock];
  for (int64_t at = from; at < from + count; at += kBlock) {
    const int n = int(from + count - at < kBlock ? from + count - at : kBlock);
    float* to[2];
    for (int side = 0; side < 2; ++side)
      to[side] = out[side] == nullptr                      ? nullptr
                 : job.sides[side].dtype == Dtype::float32 ? reinterpret_cast<float*>(out[side]) + at
                                                           : narrow[side];
    if (!wide && gradients_in_single(job, r, at, n, to, b)) {
      for (int side = 0; side < 2; ++side)
        if (to[side] == narrow[side]) store<float>(job.sides[side].dtype, out[side], at, n, narrow[side]);
    } else {
      alignas(64) double room[2][kBlock];
      double* const in_double[2] = {to[0] == nullptr ? nullptr : room[0], to[1] == nullptr ? nullptr : room[1]};
      gradients_in_double(job, r, at, n, in_double);
      for (int side = 0; side < 2; ++side)
        if (to[side] != nullptr) store<double>(job.sides[side].dtype, out[side], at, n, room[side]);
    }
  }
}

static void backward_piece(const Job& job, int64_t row, int64_t piece) {
  backward_columns(job, row, piece * kPiece, piece_size(job, piece));
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
