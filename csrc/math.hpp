// exp, log and their kin as branch-free functions, which a compiler vectorises inside a plain loop.
//
// Everything here lives in a namespace named after the instruction set that the file is compiled for, and no
// inline function of the C++ library is used: a linker that merges equal names across objects must never put
// AVX-512 code where the baseline is running.
//
// Accuracy: a few units in the last place (tests/engines/test_math.py states the bounds). NaN in gives NaN out.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define KULLBACK_INLINE static inline __attribute__((always_inline))

namespace kullback {
namespace KULLBACK_ISA {

constexpr double kInf = __builtin_inf();

template <class T>
struct Real;

template <>
struct Real<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23;
  static constexpr Bits bias = 127;
  static constexpr float shifter = 0x1.8p23f;  // adding it rounds to an integer, held in the low bits
  static constexpr float ln2_hi = 0x1.63p-1f, ln2_lo = -0x1.bd0106p-13f;  // k·ln2_hi is exact
  static constexpr float exp_low = -87.33f, exp_high = 88.37f;            // outside: 0 and inf
  static constexpr int exp_terms = 8, log_terms = 6;
};

template <>
struct Real<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52;
  static constexpr Bits bias = 1023;
  static constexpr double shifter = 0x1.8p52;
  static constexpr double ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
  static constexpr double exp_low = -708.39, exp_high = 709.43;
  static constexpr int exp_terms = 14, log_terms = 12;
};

KULLBACK_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
KULLBACK_INLINE uint64_t bits_of(double x) { return __builtin_bit_cast(uint64_t, x); }
KULLBACK_INLINE float real_of(uint32_t x) { return __builtin_bit_cast(float, x); }
KULLBACK_INLINE double real_of(uint64_t x) { return __builtin_bit_cast(double, x); }

KULLBACK_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
KULLBACK_INLINE double magnitude(double x) { return __builtin_fabs(x); }
KULLBACK_INLINE float root(float x) { return __builtin_sqrtf(x); }
KULLBACK_INLINE double root(double x) { return __builtin_sqrt(x); }

constexpr double inverse_factorial(int k) {
  double product = 1.0;
  for (int i = 2; i <= k; ++i) product *= i;
  return 1.0 / product;
}

// Σ_{k >= first} y^(k-first) / k!, `terms` of them: Horner's rule, unrolled at compile time.
template <class T, int first, int terms>
KULLBACK_INLINE T factorial_series(T y) {
  constexpr T coefficient = T(inverse_factorial(first));
  if constexpr (terms == 1) {
    return coefficient;
  } else {
    return coefficient + y * factorial_series<T, first + 1, terms - 1>(y);
  }
}

// Σ_k z^k / (2k + first), `terms` of them: atanh(s) / s at z = s² for first = 1.
template <class T, int first, int terms>
KULLBACK_INLINE T odd_series(T z) {
  constexpr T coefficient = T(1.0 / first);
  if constexpr (terms == 1) {
    return coefficient;
  } else {
    return coefficient + z * odd_series<T, first + 2, terms - 1>(z);
  }
}

// e^x = 2^k e^f, |f| <= ln(2)/2; results below the normal numbers are 0 (but see `exp_with_subnormals`).
template <class T>
KULLBACK_INLINE T exp(T x) {
  using R = Real<T>;
  const T shifted = x * T(1.4426950408889634) + R::shifter;
  const T k = shifted - R::shifter;
  const T f = (x - k * R::ln2_hi) - k * R::ln2_lo;
  const T scale = real_of((bits_of(shifted) + R::bias) << R::mantissa);
  const T result = factorial_series<T, 0, R::exp_terms>(f) * scale;
  return x < R::exp_low ? T(0) : x > R::exp_high ? T(kInf) : result;
}

// Horner's rule.
template <class T, size_t n>
KULLBACK_INLINE T polynomial(const T (&coefficients)[n], T y) {
  T sum = coefficients[n - 1];
  for (size_t i = n - 1; i-- > 0;) sum = coefficients[i] + y * sum;
  return sum;
}

// (e^y - 1 - y) / y², minimax. For e^f on |f| <= ln(2)/2: e^f to 1.1e-7, and to 4e-9. For e^y - 1 - y on |y| <= 1:
// to 1.1e-7.
constexpr float kExcessShort[] = {0x1.fffdfcp-2f, 0x1.5557aep-3f, 0x1.5729fp-5f, 0x1.106282p-7f};
constexpr float kExcessNarrow[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239d4p-7f, 0x1.6a244cp-10f};
constexpr float kExcessWide[] = {
    0.5f, 0x1.55557cp-3f, 0x1.555504p-5f, 0x1.10fce8p-7f, 0x1.6c272cp-10f, 0x1.aa419cp-13f, 0x1.a2c5ecp-16f};

// e^x for -87 <= x <= 0.
KULLBACK_INLINE float exp_bounded(float x) {
  using R = Real<float>;
  constexpr float biased =
      R::shifter + float(R::bias);  // the low bits of `shifted` are the exponent of 2^k as they are
  const float shifted = x * 1.44269504f + biased;
  const float k = shifted - biased;
#ifdef __FMA__
  const float f = x - k * 0x1.62e430p-1f;
#else
  const float f = (x - k * R::ln2_hi) - k * R::ln2_lo;
#endif
  const float scale = real_of(bits_of(shifted) << R::mantissa);
  return (1.0f + f * (1.0f + f * polynomial(kExcessShort, f))) * scale;
}

// e^x for x <= 0; 0 below -87.
KULLBACK_INLINE float exp_negative(float x) {
  using R = Real<float>;
  constexpr float biased =
      R::shifter + float(R::bias);  // the low bits of `shifted` are the exponent of 2^k as they are
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + biased;
  const float k = shifted - biased;
#ifdef __FMA__
  const float f = bounded - k * 0x1.62e430p-1f;
#else
  const float f = (bounded - k * R::ln2_hi) - k * R::ln2_lo;
#endif
  const float scale = real_of(bits_of(shifted) << R::mantissa);
  const float near = (1.0f + f * (1.0f + f * polynomial(kExcessNarrow, f))) * scale;
  return x < -87.0f ? 0.0f : near;
}
KULLBACK_INLINE double exp_negative(double x) { return exp(x); }

// A weight of e^-740 still has a logarithm and a ratio to its neighbours.
KULLBACK_INLINE float exp_with_subnormals(float x) { return exp_negative(x); }
KULLBACK_INLINE double exp_with_subnormals(double x) {
  const bool deep = x < -700.0;
  return exp(deep ? x + 0x1.2b708872320e2p5 : x) * (deep ? 0x1p-54 : 1.0);  // 54 ln 2
}

// log x = k ln 2 + 2 atanh((m - 1) / (m + 1)), m in [√½, √2); -inf at 0, NaN below.
template <class T>
KULLBACK_INLINE T log(T x) {
  using R = Real<T>;
  constexpr T tiny = sizeof(T) == 8 ? T(0x1p-1022) : T(0x1p-126f);
  constexpr T lift = sizeof(T) == 8 ? T(0x1p54) : T(0x1p25f);
  constexpr T lift_log2 = sizeof(T) == 8 ? T(54) : T(25);
  constexpr typename R::Bits half_root =
      sizeof(T) == 8 ? typename R::Bits(0x3fe6a09e667f3bcdULL) : typename R::Bits(0x3f3504f3U);
  constexpr typename R::Bits one = R::bias << R::mantissa;
  constexpr typename R::Bits mask = (typename R::Bits(1) << R::mantissa) - 1;
  const bool subnormal = x < tiny;
  const typename R::Bits moved = bits_of(subnormal ? x * lift : x) + (one - half_root);
  const T exponent = real_of((moved >> R::mantissa) + bits_of(R::shifter)) - (R::shifter + T(R::bias));
  const T k = subnormal ? exponent - lift_log2 : exponent;
  const T m = real_of((moved & mask) + half_root);
  const T s = (m - T(1)) / (m + T(1));
  const T result = k * R::ln2_hi + (T(2) * s * odd_series<T, 1, R::log_terms>(s * s) + k * R::ln2_lo);
  const T edge = x == T(0) ? T(-kInf) : x == T(kInf) ? T(kInf) : T(__builtin_nan(""));
  return (x > T(0) && x < T(kInf)) ? result : edge;
}

template <class T>
KULLBACK_INLINE T log1p(T x) {
  const T c = T(1) + x;
  const T rest = x - (c - T(1));  // what rounding 1 + x lost
  return log(c) + rest / c;
}

// e^y - 1 - y for |y| < 1.
KULLBACK_INLINE float excess_near(float y) { return y * y * polynomial(kExcessWide, y); }
KULLBACK_INLINE double excess_near(double y) { return y * y * factorial_series<double, 2, 17>(y); }

template <class T>
KULLBACK_INLINE T expm1(T y) {
  return magnitude(y) < T(1) ? y + excess_near(y) : exp(y) - T(1);
}

}  // namespace KULLBACK_ISA
}  // namespace kullback
