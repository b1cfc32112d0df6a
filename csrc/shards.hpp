// Rows of which this process holds some columns and others hold the rest: each stage by itself, giving out the state
// that merges between them. The backward pass is that of any row, with the statistics of the whole row.
#pragma once

#include "long_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

// What reading the next row of the range [.., last) will take, a share of it with each of so many steps a block.
static Ahead next_row(const Job& job, int64_t row, int64_t last, int steps_a_block) {
  Ahead ahead{};
  if (row + 1 >= last) return ahead;
  int64_t lines = 0;
  for (int side = 0; side < 2; ++side)
    if (job.sides[side].reading != Reading::labels) lines += Ahead::add(ahead, job, side, row + 1);
  const int64_t steps = steps_a_block * blocks_of(job.num_columns);
  ahead.share = int((lines + steps - 1) / steps);
  return ahead;
}

// Stage one of the rows [first, last): (m, Σ exp(x - m)) of either side, (2, rows) each; (-inf, 0) without mass.
// `kept`: room for one row's exponentials, which nobody reads: the way that keeps them is the faster one. Or null.
static void normalize_shard(const Job& job, int64_t first, int64_t last, float* kept, double* max, double* sum) {
  for (int64_t row = first; row < last; ++row) {
    Normalizer z[2] = {{-kInf, 0.0}, {-kInf, 0.0}};
    Ahead ahead = next_row(job, row, last, 2);
    for (int64_t i = 0; i < pieces_of(job); ++i) {
      Piece piece;
      normalize_piece(job, row, i, kept, &ahead, piece);
      for (int side = 0; side < 2; ++side)
        z[side] = merge(z[side], {piece.max[side], piece.sum[side]}, job.sides[side].inverse_temperature);
    }
    for (int side = 0; side < 2; ++side) {
      max[side * job.num_rows + row] = z[side].max;
      sum[side * job.num_rows + row] = z[side].sum;
    }
  }
}

// Stage two of the rows [first, last), given the normalisers of whole rows in `job.stats`: value, Σ ∂f/∂log p and
// Σ ∂f/∂log q, (3, rows), which add. log_affinity: (m, Σ exp(s - m)) of its scores, and NaN where one is, else 0.
static void sum_shard(const Job& job, int64_t first, int64_t last, double* states) {
  const int64_t rows = job.num_rows;
  for (int64_t row = first; row < last; ++row) {
    const Row r = find_row(job, row, job.stats + 2 * row);
    Normalizer scores = {-kInf, 0.0};
    double value = 0.0, x[2] = {0.0, 0.0};
    Ahead ahead = next_row(job, row, last, 1);
    for (int64_t i = 0; i < pieces_of(job); ++i) {
      Piece piece;
      sum_columns(job, r, i * kPiece, piece_size(job, i), nullptr, &ahead, piece);
      value += piece.value;
      if (job.formula == Formula::log_affinity) {
        scores = merge(scores, {piece.max[0], piece.sum[0]}, 1.0);
      } else {
        x[0] += piece.sum_x[0];
        x[1] += piece.sum_x[1];
      }
    }
    const bool affinity = job.formula == Formula::log_affinity;
    states[row] = affinity ? scores.max : value;
    states[rows + row] = affinity ? scores.sum : x[0];
    states[2 * rows + row] = affinity ? value : x[1];
  }
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
