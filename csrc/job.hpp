// What one call asks for: plain data, shared by every instruction set.
#pragma once

#include <stdint.h>

#include "generators.hpp"

namespace kullback {

enum class Dtype : int { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3 };

static inline int64_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// core/readings.py. A listed side holds rows of k classes (coarse.hpp: `Listed`): `even` says what each of the others
// has; of `coarse`, beside logits, they are one cell.
enum class Reading : int { logits = 0, log_probs = 1, probs = 2, labels = 3, even = 4, coarse = 5 };

constexpr int kListedHead = 2;  // numbers of a listed row before its ids: how many, and for how many there is room

// The generators that generators.hpp lists, and core/reduction.py's other sum.
#define KULLBACK_ENUMERATOR(name) name,
enum class Formula : int { KULLBACK_GENERATORS(KULLBACK_ENUMERATOR) log_affinity };
#undef KULLBACK_ENUMERATOR

constexpr int kMaxDims = 16;

// One side of the pair. A row is found by its strides, in elements; labels are one int64 a row, listed rows int64 too.
struct Side {
  Reading reading;
  Dtype dtype;
  const void* data;
  int64_t strides[kMaxDims];
  double inverse_temperature;
  double on, off, log_on, log_off;
};

// core/generators.py: what holds where one side has no mass.
struct Edges {
  double at_zero[2];  // f(0, q) / q and f(p, 0) / p
  double plain[2];
  double slopes[2];
  bool log_q_slope;
};

// What the backward pass needs of one side of one row: (m, log Σ exp(x - m)) and Σ x, x = ∂f/∂log w.
struct Stats {
  double max, log_sum, sum_x;
};

struct Job {
  Formula formula;
  double parameter;
  Edges edges;
  int dims;
  int64_t shape[kMaxDims];
  int64_t num_rows, num_columns;
  Side sides[2];
  double* values;  // (rows), float64; null where `out` is enough
  void* out;       // (rows), scale · value in float32 or float64, or null
  bool out_is_double;
  double scale;
  Stats* stats;          // (rows, 2), or null where no gradient will be asked for
  const void* upstream;  // (rows), float32 or float64, of `out`; the backward pass only, as is:
  bool upstream_is_double;
  int64_t upstream_strides[kMaxDims];
  void* gradients[2];     // (rows, columns) contiguous, of the dtype of their side; null where not wanted
  bool exact_normalizer;  // the sum is not flat at p = q, so that an error in log Z counts to first order
  bool shard;             // others hold the rest of every row's columns: `stats` say more than the cells here do
};

static inline void store_value(const Job& job, int64_t row, double value) {
  if (job.values != nullptr) job.values[row] = value;
  if (job.out == nullptr) return;
  if (job.out_is_double) {
    static_cast<double*>(job.out)[row] = job.scale * value;
  } else {
    static_cast<float*>(job.out)[row] = float(job.scale * value);
  }
}

// ---- Totals: Σ over terms and rows of weight · divergence, with the gradients that it sends, in one pass.

constexpr int kMaxTerms = 8, kMaxOutputs = 2 * kMaxTerms;

// A gradient, (rows, columns) contiguous: every cell is written once, 0 where nothing is sent.
struct Output {
  Dtype dtype;
  void* data;
};

// One term, Σ_rows w·D. A row of weight 0 is not looked at. Of the job, `values`, `out`, `stats`, `upstream` and
// `gradients` are not read; `log_affinity` is not served.
struct Term {
  Job job;
  const double* weights;  // by strides along the batch axes, as is:
  int64_t weight_strides[kMaxDims];
  int outputs[2];  // where each side's gradient is added; -1: nowhere
};

// All terms share dims, shape, num_rows and num_columns.
struct Total {
  int num_terms, num_outputs;
  const Term* terms;
  const Output* outputs;
  double* values;  // (num_terms): each term's own sum
  double* rows;    // (num_terms, num_rows): w·D of every row, or null where it is not asked for
};

// A piece of a row's work that merges with its neighbours in the order of columns.
struct Piece {
  double max[2], sum[2];   // stage one, of either side; log_affinity's own in [0] of stage two
  double value, sum_x[2];  // stage two; log_affinity: NaN in `value` where a score is
};

// What the terms of a total know of one row.
struct TotalRow {
  double weight[kMaxTerms], value[kMaxTerms];
  Stats stats[kMaxTerms][2];
};

// Scores at one temperature, which several terms may need: e^((x - m) / T), kept from stage one for the gradients.
struct Scores {
  int term, side;          // where they are read
  int base, power;         // power > 1: the exponentials are those of scores `base`, raised to it
  bool exact, adds_below;  // Σ exp in double throughout; Σ (x - m) is wanted
  int64_t kept;            // where a row's exponentials lie in `kept`; their ranges, Range a block, behind them
};

// general: as rows do; pair: two rows of logits at one temperature; labels: cross-entropy from the normaliser alone;
// coarse: listed classes beside logits
enum class Route : int { general, pair, labels, coarse };

// How a total is computed, decided once a call.
struct Plan {
  Total total;
  Route routes[kMaxTerms];
  int num_scores;
  Scores scores[2 * kMaxTerms];
  int scores_of[kMaxTerms][2];   // of a pair's sides, of side 1 of labels, of the dense side of a coarse term
  int64_t kept_x[kMaxTerms][2];  // where ∂f/∂log w of a pair, or of cells, lies in `kept`; -1: no gradient is wanted
  int64_t kept_floats;           // for one row
  int64_t rows_together;         // rows that go together when they are short
};

struct ScoresPiece {
  double max, sum, below;
};

struct TotalPiece {
  ScoresPiece scores[2 * kMaxTerms];
  Piece terms[kMaxTerms];
};

// One instruction set's kernels. A row is cut into pieces of `kPiece` columns whoever computes it, so that its bits
// do not depend on the number of threads.
constexpr int64_t kPiece = 16384;
constexpr int64_t kKeptFloats = 1 << 18;  // what a thread keeps between stages, at least, where it keeps anything

struct Kernels {
  const char* name;
  // whole rows [first, last)
  void (*forward_rows)(const Job&, int64_t first, int64_t last, float* kept);
  void (*backward_rows)(const Job&, int64_t first, int64_t last);
  // one piece of one row, for rows so few and long that threads share them
  void (*normalize_piece)(const Job&, int64_t row, int64_t piece, float* kept, Piece&);
  void (*merge_normalizers)(const Job&, const Piece*, int64_t pieces, Stats*);
  void (*sum_piece)(const Job&, int64_t row, int64_t piece, const Stats*, float* kept, Piece&);
  double (*merge_sums)(const Job&, const Piece*, int64_t pieces, Stats*);  // the row's value
  void (*backward_piece)(const Job&, int64_t row, int64_t piece);
  // the columns here of rows [first, last), stage by stage (csrc/shards.hpp)
  void (*normalize_shard)(const Job&, int64_t first, int64_t last, float* kept, double* max, double* sum);
  void (*sum_shard)(const Job&, int64_t first, int64_t last, double* states);
  // totals: whole rows, with Σ w·D of each term added to `sums`; and a row's pieces, stage by stage
  void (*plan_total)(const Total&, Plan&);
  void (*total_rows)(const Plan&, int64_t first, int64_t last, float* kept, double* sums);
  void (*total_weights)(const Plan&, int64_t row, TotalRow&);
  void (*total_normalize_piece)(const Plan&, const TotalRow&, int64_t row, int64_t piece, float* kept, TotalPiece&);
  void (*total_merge_normalizers)(const Plan&, int64_t row, const TotalPiece*, int64_t pieces, float* kept, TotalRow&);
  void (*total_sum_piece)(const Plan&, const TotalRow&, int64_t row, int64_t piece, float* kept, TotalPiece&);
  void (*total_merge_sums)(const Plan&, const TotalPiece*, int64_t pieces, const float* kept, TotalRow&);
  void (*total_gradient_piece)(const Plan&, const TotalRow&, int64_t row, int64_t piece, float* kept);
  void (*total_count)(const Plan&, int64_t row, const TotalRow&, double* sums);
  // rows that go together when they are short (1: they do not)
  int64_t (*rows_together)(const Job&);
  // floats of `kept` that one row needs between stage one and stage two (0: none)
  int64_t (*kept_floats)(const Job&);
  // the elementary functions, for their tests: 0 exp, 1 log, 2 log1p, 3 expm1
  void (*apply_double)(int which, const double* x, double* out, int64_t n);
  void (*apply_float)(int which, const float* x, float* out, int64_t n);
};

}  // namespace kullback
