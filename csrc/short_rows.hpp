// Many short rows of logits, side by side.
#pragma once

#include "long_rows.hpp"

namespace kullback {
namespace KULLBACK_ISA {

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
      forward_long_row(job, first + r, nullptr);
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

}  // namespace KULLBACK_ISA
}  // namespace kullback
