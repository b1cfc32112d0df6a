// Many short rows of logits side by side, one a lane, so that no lane is idle: cell (column, row) is at
// column·kLanes + row.
//
// A row that is not safe in single precision is computed alone, as a long row would be; no row's result depends on its
// neighbours.
#pragma once

#include "long_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

constexpr int kLanes = 64, kShort = 64;

static bool side_by_side(const Job& job) {
  return job.num_columns <= kShort && job.num_rows >= kLanes / 4 && !job.shard && logits_at_one_temperature(job) &&
         !double_throughout(job);
}

struct Lanes {
  alignas(64) float cells[2][kShort * kLanes];
  alignas(64) float exps[2][kShort * kLanes];  // e^(x - max)
  alignas(64) float max[2][kLanes], min[2][kLanes];
  alignas(64) float to_weight[2][kLanes];  // 1 / Σ exp
  alignas(64) float log_sum[2][kLanes], shift_high[kLanes], shift_low[kLanes];
  alignas(64) double log_sum_d[2][kLanes];
  alignas(64) int alone[kLanes];
};

// Both sides, or from `from` = 1 the second alone.
static void gather(const Job& job, int from, int64_t first, int count, Lanes& t) {
  const int columns = int(job.num_columns);
  for (int side = from; side < 2; ++side) {
    for (int r = 0; r < kLanes; ++r) {
      float room[kShort];
      const void* row = row_of(job, side, first + (r < count ? r : 0));
      const float* x = load<float>(job.sides[side].dtype, row, 0, columns, room);
      for (int v = 0; v < columns; ++v) t.cells[side][v * kLanes + r] = x[v];
    }
  }
}

static void find_ranges(int columns, int from, Lanes& t) {
  for (int side = from; side < 2; ++side) {
    float *max = t.max[side], *min = t.min[side];
    const float* cells = t.cells[side];
    for (int r = 0; r < kLanes; ++r) max[r] = min[r] = cells[r];
    for (int v = 1; v < columns; ++v) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) {
        const float x = cells[v * kLanes + r];
        max[r] = x > max[r] ? x : max[r];
        min[r] = x < min[r] ? x : min[r];
      }
    }
  }
}

// The exponentials of every cell, wrong where a row is not safe, and, where `sums` is given, their sums.
static void find_exponentials(const Job& job, int from, Lanes& t, double (*sums)[kLanes]) {
  const int columns = int(job.num_columns);
  const double scale = job.sides[1].inverse_temperature;
  const float high = float(scale), low = float(scale - double(high));
  for (int side = from; side < 2; ++side) {
    const float *max = t.max[side], *cells = t.cells[side];
    float* exps = t.exps[side];
    for (int v = 0; v < columns; ++v) {
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) {
        const float below = cells[v * kLanes + r] - max[r];
        exps[v * kLanes + r] = exp_bounded(below * high + below * low);
      }
    }
    if (sums == nullptr) continue;
    double* sum = sums[side];
    for (int r = 0; r < kLanes; ++r) sum[r] = 0.0;
    for (int v = 0; v < columns; ++v) {
      if (job.exact_normalizer) {
#pragma omp simd
        for (int r = 0; r < kLanes; ++r) sum[r] += exp((double(cells[v * kLanes + r]) - double(max[r])) * scale);
      } else {
#pragma omp simd
        for (int r = 0; r < kLanes; ++r) sum[r] += double(exps[v * kLanes + r]);
      }
    }
  }
}

// What a lane's cells share, from its normalisers; and which rows are to be computed alone.
static void prepare_lanes(const Job& job, Lanes& t, double reach) {
  const double scale = job.sides[0].inverse_temperature, temperature = 1.0 / scale;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    const double max_a = double(t.max[0][r]), max_b = double(t.max[1][r]);
    const double log_sum_a = t.log_sum_d[0][r], log_sum_b = t.log_sum_d[1][r];
    const double shift = (max_b - max_a) + (log_sum_b - log_sum_a) * temperature;
    const float high = float(shift);
    t.shift_high[r] = high;
    t.shift_low[r] = float(shift - double(high));
    t.log_sum[0][r] = float(log_sum_a);
    t.log_sum[1][r] = float(log_sum_b);
    t.to_weight[0][r] = float(exp(-log_sum_a));
    t.to_weight[1][r] = float(exp(-log_sum_b));
  }
  for (int r = 0; r < kLanes; ++r) {
    const Stats stats[2] = {{double(t.max[0][r]), t.log_sum_d[0][r], 0.0},
                            {double(t.max[1][r]), t.log_sum_d[1][r], 0.0}};
    t.alone[r] = !safe({t.max[0][r], t.min[0][r]}, {t.max[1][r], t.min[1][r]}, stats, scale, reach);
  }
}

template <class G>
KULLBACK_INLINE Seen<float> terms_of_lane(const G& g, const Lanes& t, int v, int r, float scale) {
  const float a = t.cells[0][v * kLanes + r], b = t.cells[1][v * kLanes + r];
  const float p = t.exps[0][v * kLanes + r] * t.to_weight[0][r], q = t.exps[1][v * kLanes + r] * t.to_weight[1][r];
  const float d = log_ratio(a, b, t.shift_high[r], t.shift_low[r], scale),
              log_q = (b - t.max[1][r]) * scale - t.log_sum[1][r];
  return {G::template at<float>(g, {p, q, d, log_q}), p, q, 0};
}

// One column of every lane.
template <class G>
static void sum_column(const G& generator, const Lanes& t, int v, float scale, float* __restrict value,
                       float* __restrict x_p, float* __restrict x_q) {
  const G g = generator;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    const Seen<float> cell = terms_of_lane(g, t, v, r, scale);
    value[r] += cell.f.value;
    x_p[r] += cell.f.dlogp;
    x_q[r] += cell.f.dlogq;
  }
}

template <class G>
static void write_column(const G& generator, const Lanes& t, int v, float scale, const float (*scales)[kLanes],
                         const float (*sum_x)[kLanes], float* __restrict to_p, float* __restrict to_q) {
  const G g = generator;
#pragma omp simd
  for (int r = 0; r < kLanes; ++r) {
    const Seen<float> cell = terms_of_lane(g, t, v, r, scale);
    to_p[r] = scales[0][r] * (cell.f.dlogp - cell.p * sum_x[0][r]);
    to_q[r] = scales[1][r] * (cell.f.dlogq - cell.q * sum_x[1][r]);
  }
}

static void forward_lanes(const Job& job, int64_t first, int count) {
  Lanes t;
  const float scale = float(job.sides[0].inverse_temperature);
  const int columns = int(job.num_columns);
  alignas(64) double sums[2][kLanes];
  alignas(64) float value[kLanes] = {}, x_p[kLanes] = {}, x_q[kLanes] = {};
  gather(job, 0, first, count, t);
  find_ranges(columns, 0, t);
  find_exponentials(job, 0, t, sums);
  for (int side = 0; side < 2; ++side) {
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) t.log_sum_d[side][r] = log(sums[side][r]);
  }
  with_generator(job, [&](const auto& g) {
    prepare_lanes(job, t, g.reach);
    for (int v = 0; v < columns; ++v) sum_column(g, t, v, scale, value, x_p, x_q);
    return true;
  });
  for (int r = 0; r < count; ++r) {
    if (t.alone[r]) {
      forward_long_row(job, first + r, nullptr);
    } else {
      const Stats stats[2] = {{double(t.max[0][r]), t.log_sum_d[0][r], double(x_p[r])},
                              {double(t.max[1][r]), t.log_sum_d[1][r], double(x_q[r])}};
      finish_row(job, first + r, stats, double(value[r]));
    }
  }
}

static void backward_lanes(const Job& job, int64_t first, int count) {
  Lanes t;
  const float over_temperature = float(job.sides[0].inverse_temperature);
  const int columns = int(job.num_columns);
  alignas(64) float gradients[2][kShort * kLanes];
  alignas(64) float scale[2][kLanes] = {}, sum_x[2][kLanes] = {};
  bool silent_or_wide[kLanes] = {};
  gather(job, 0, first, count, t);
  find_ranges(columns, 0, t);
  for (int r = 0; r < kLanes; ++r) {
    const int64_t row = first + (r < count ? r : 0);
    const double value = job.values[row], upstream = upstream_of(job, row);
    silent_or_wide[r] = !(magnitude(value) < kInf) || upstream == 0.0;
    for (int side = 0; side < 2; ++side) {
      const Stats& stats = job.stats[2 * row + side];
      const double s = scale_of(job, side, upstream);
      t.log_sum_d[side][r] = stats.log_sum;
      silent_or_wide[r] |= !moderate(s) || !(magnitude(stats.sum_x) < double(kSafe));
      scale[side][r] = float(s);
      sum_x[side][r] = float(stats.sum_x);
    }
  }
  find_exponentials(job, 0, t, nullptr);
  with_generator(job, [&](const auto& g) {
    prepare_lanes(job, t, g.reach);
    for (int v = 0; v < columns; ++v)
      write_column(g, t, v, over_temperature, scale, sum_x, gradients[0] + v * kLanes, gradients[1] + v * kLanes);
    return true;
  });
  for (int r = 0; r < count; ++r) {
    if (silent_or_wide[r] || t.alone[r]) {
      backward_columns(job, first + r, 0, columns);
      continue;
    }
    for (int side = 0; side < 2; ++side) {
      if (job.gradients[side] == nullptr) continue;
      float room[kShort];
      for (int v = 0; v < columns; ++v) room[v] = gradients[side][v * kLanes + r];
      const Dtype dtype = job.sides[side].dtype;
      store<float>(dtype, static_cast<char*>(job.gradients[side]) + size_of(dtype) * (first + r) * columns, 0, columns,
                   room);
    }
  }
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
