// The four dtypes of a cell, and where the rows of a job lie.
#pragma once

#include "job.hpp"
#include "math.hpp"

namespace kullback {
namespace KULLBACK_ISA {

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

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

KULLBACK_INLINE int64_t offset_of(const Job& job, const int64_t* strides, int64_t row) {
  if (job.dims == 1) return row * strides[0];
  int64_t offset = 0;
  for (int axis = job.dims - 1; axis >= 0; --axis) {
    offset += (row % job.shape[axis]) * strides[axis];
    row /= job.shape[axis];
  }
  return offset;
}

// The row's gradient of what comes of its value, times the scale between them.
KULLBACK_INLINE double upstream_of(const Job& job, int64_t row) {
  const int64_t at = offset_of(job, job.upstream_strides, row);
  const double upstream = job.upstream_is_double ? static_cast<const double*>(job.upstream)[at]
                                                 : double(static_cast<const float*>(job.upstream)[at]);
  return job.scale * upstream;
}

// Whether a side holds numbers in `dtype`, one a column.
KULLBACK_INLINE bool is_dense(const Side& s) {
  return s.reading == Reading::logits || s.reading == Reading::log_probs || s.reading == Reading::probs;
}

KULLBACK_INLINE const void* row_of(const Job& job, int side, int64_t row) {
  const Side& s = job.sides[side];
  const int64_t bytes = is_dense(s) ? size_of(s.dtype) : 8;
  return static_cast<const char*>(s.data) + bytes * offset_of(job, s.strides, row);
}

// What the next row will read, asked for line by line while this row is computed, so that memory is not idle.
struct Ahead {
  const char* at[2 * kMaxTerms];
  int64_t left[2 * kMaxTerms];  // lines
  int streams, now, share;      // `share` lines a step

  KULLBACK_INLINE void step(Ahead& a) {
    int lines = a.share;
    while (lines > 0 && a.now < a.streams) {
      const int n = int(a.left[a.now] < lines ? a.left[a.now] : lines);
      for (int i = 0; i < n; ++i) __builtin_prefetch(a.at[a.now] + 64 * i, 0, 2);
      a.at[a.now] += 64 * n;
      a.left[a.now] -= n;
      lines -= n;
      if (a.left[a.now] == 0) ++a.now;
    }
  }

  static int64_t add(Ahead& a, const Job& job, int side, int64_t row) {
    if (!is_dense(job.sides[side])) return 0;
    a.at[a.streams] = static_cast<const char*>(row_of(job, side, row));
    return a.left[a.streams++] = (size_of(job.sides[side].dtype) * job.num_columns + 63) / 64;
  }
};

KULLBACK_INLINE bool logits_at_one_temperature(const Job& job) {
  return job.sides[0].reading == Reading::logits && job.sides[1].reading == Reading::logits &&
         job.sides[0].inverse_temperature == job.sides[1].inverse_temperature;
}

KULLBACK_INLINE bool double_throughout(const Job& job) {
  for (int side = 0; side < 2; ++side) {
    const Side& s = job.sides[side];
    if (is_dense(s) && s.dtype == Dtype::float64) return true;
  }
  return job.formula == Formula::log_affinity || (!is_dense(job.sides[0]) && !is_dense(job.sides[1]));
}

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

}  // namespace KULLBACK_ISA
}  // namespace kullback
