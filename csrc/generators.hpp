// core/generators.py, transcribed under the same names, where the formulas are explained.
#pragma once

// The list of generators: a struct of each name stands below, and core/generators.py has one of each name too. Enumeration,
// dispatch and the names that Python compares with its own come from here.
#define KULLBACK_GENERATORS(X) \
  X(kl)                        \
  X(reverse_kl)                \
  X(jeffreys)                  \
  X(js)                        \
  X(skew_kl)                   \
  X(alpha)                     \
  X(tv)                        \
  X(squared_hellinger)         \
  X(chi2)                      \
  X(triangular)                \
  X(nothing)                   \
  X(cross_entropy)

#ifdef KULLBACK_ISA  // the rest is for kernels alone

#include "math.hpp"

namespace kullback {
namespace KULLBACK_ISA {

template <class T>
struct Cells {
  T p, q, d, log_q;
};

template <class T>
struct Terms {
  T value, dlogp, dlogq;
};

// w (e^y - 1), given also m = w e^y.
template <class T>
KULLBACK_INLINE T growth(T w, T m, T y) {
  return magnitude(y) < T(1) ? w * (y + excess_near(y)) : m - w;
}

// w (e^y - 1 - y) >= 0, given also m = w e^y.
template <class T>
KULLBACK_INLINE T excess(T w, T m, T y) {
  return magnitude(y) < T(1) ? w * excess_near(y) : m - w - w * y;
}

// p and q below e^-87 are 0 in single precision, while d is not: every term stays >= 0
constexpr double kReach = 1e5;

// `reach` is the largest |d| at which single precision holds every intermediate; beyond it a block is redone in double.
struct kl {
  explicit kl(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const kl&, Cells<T> c) {
    return {excess(c.p, c.q, c.d), -c.p * c.d, growth(c.p, c.q, c.d)};
  }
};

struct reverse_kl {
  explicit reverse_kl(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const reverse_kl&, Cells<T> c) {
    return {excess(c.q, c.p, -c.d), growth(c.q, c.p, -c.d), c.q * c.d};
  }
};

struct jeffreys {
  explicit jeffreys(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const jeffreys&, Cells<T> c) {
    const T g = growth(c.p, c.q, c.d);
    return {g * c.d, -c.p * c.d - g, g + c.q * c.d};
  }
};

// log(w + u e^y) with w + u = 1, as log(1 + x) where that is small. One logarithm for every case.
template <class T>
KULLBACK_INLINE T log_mix(T w, T u, T y) {
  const bool below = y < T(0);
  const T decayed = exp_negative(-magnitude(y)), gone = T(1) - decayed;
  const T far = u * (below ? -gone : gone / decayed);  // u (e^y - 1); +inf or NaN where e^y overflows
  const T x = magnitude(y) < T(1) ? u * (y + excess_near(y)) : far;
  const bool small = (x > T(-0.5)) & (x < T(1));
  const T here = below ? w : u, there = below ? u : w;  // log(here + there e^-|y|), plus y where y > 0
  const T c = small ? T(1) + x : here + there * decayed;
  const T lost = small ? x - (c - T(1)) : T(0);
  return log(c) + lost / c + ((small | below) ? T(0) : y);
}

struct js {
  double w, u;
  explicit js(double weight) : w(weight), u(1.0 - weight), reach(w < 1e-6 || u < 1e-6 ? 0.0 : kReach) {}
  double reach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const js& g, Cells<T> c) {
    const T w = T(g.w), u = T(g.u);
    const T m = w * c.p + u * c.q;
    const T log_m_p = log_mix(w, u, c.d), log_m_q = log_mix(u, w, -c.d);
    return {w * excess(c.p, m, log_m_p) + u * excess(c.q, m, log_m_q), -w * c.p * log_m_p, -u * c.q * log_m_q};
  }
};

// js of weight 1/2 in single precision: one logarithm for both sides. With h = d/2 and L = log cosh h, the value is
// m (h tanh h - L), log m/p = L + h and log m/q = L - h.
struct js_half {
  explicit js_half(double weight) : general(weight), reach(general.reach) {}
  js general;
  double reach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const js_half& g, Cells<T> c) {
    if constexpr (sizeof(T) == 8) {
      return js::at(g.general, c);
    } else {
      const T h = c.d / T(2), z = c.d * c.d;
      const T low = c.p < c.q ? c.p : c.q, high = c.p < c.q ? c.q : c.p;
      const T r = high > T(0) ? low / high : high;  // e^-|d|
      const T s = log(T(1) + r) - T(0.693147180559945309);
      // both over z, on |d| < 1, to 3e-8: polynomials through the Chebyshev nodes of [0, 1]
      const T cosh_z =
          T(0.124999999714) +
          z * (T(-0.0052083190316) + z * (T(0.000347106769189) + z * (T(-2.60218953949e-5) + z * T(1.74166447714e-6))));
      const T value_z =
          T(0.124999996975) +
          z * (T(-0.0156248484337) + z * (T(0.00173488549718) + z * (T(-0.000180947787529) + z * T(1.49881640691e-5))));
      const bool near = magnitude(c.d) < T(1);
      const T m = (c.p + c.q) / T(2);
      const T value = near ? z * value_z : -s - magnitude(h) * (T(2) * r / (T(1) + r));
      const T log_m_p = near ? z * cosh_z + h : c.d < T(0) ? s : s + c.d;
      const T log_m_q = near ? z * cosh_z - h : c.d < T(0) ? s - c.d : s;
      return {m * value, c.p * log_m_p / T(-2), c.q * log_m_q / T(-2)};
    }
  }
};

struct skew_kl {
  double w, u;
  explicit skew_kl(double weight) : w(weight), u(1.0 - weight), reach(w < 1e-6 || u < 1e-6 ? 0.0 : kReach) {}
  double reach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const skew_kl& g, Cells<T> c) {
    const T w = T(g.w), u = T(g.u);
    const T m = w * c.p + u * c.q, y = log_mix(w, u, c.d);
    // p/m, at most 1/w: subnormal numbers have lost digits, which only double keeps; where both are 0 nothing counts
    const T back = sizeof(T) == 8 ? exp(-y) : m > T(0) ? c.p / m : m;
    const T from_p = growth(c.p, c.p * back, -y), from_q = growth(c.q, c.q * back, -y);
    return {excess(c.p, m, y), -c.p * y - w * from_p, -u * from_q};
  }
};

template <class T>
KULLBACK_INLINE Terms<T> alpha_half_up(T a, T t, T p, T q, T d) {
  const T m = (d < T(0) ? p : q) * exp(d < T(0) ? t * d : -a * d);  // p^a q^(1-a)
  const T dlogp = -growth(p, m, t * d) / t;
  const T near = excess(p, q, d) - excess(p, m, t * d) / t;
  const T far = growth(p, q, d) + dlogp;
  return {(magnitude(d) < T(1) ? near : far) / a, dlogp, -growth(q, m, -a * d) / a};
}

// alpha of order a >= 1/2, and below 1/2 by exchanging the two sides; orders 1 and 0 are kl and reverse_kl.
template <bool exchanged>
struct alpha_of {
  double a, t, reach;
  explicit alpha_of(double order)
      : a(exchanged ? 1.0 - order : order),
        t(exchanged ? order : 1.0 - order),
        reach(t < 0.0    ? 20.0 / a
              : t < 1e-6 ? 0.0
                         : kReach) {}
  template <class T>
  KULLBACK_INLINE Terms<T> at(const alpha_of& g, Cells<T> c) {
    if constexpr (exchanged) {
      const Terms<T> f = alpha_half_up(T(g.a), T(g.t), c.q, c.p, -c.d);
      return {f.value, f.dlogq, f.dlogp};
    } else {
      return alpha_half_up(T(g.a), T(g.t), c.p, c.q, c.d);
    }
  }
};

struct alpha;  // one of the two

struct tv {
  explicit tv(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const tv&, Cells<T> c) {
    const T g = growth(c.p, c.q, c.d);
    const T s = g > T(0) ? T(0.5) : g < T(0) ? T(-0.5) : g;  // NaN stays NaN
    return {magnitude(g) / T(2), -s * c.p, s * c.q};
  }
};

struct squared_hellinger {
  explicit squared_hellinger(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const squared_hellinger&, Cells<T> c) {
    const T root_p = root(c.p), root_q = root(c.q);
    const T r = growth(root_p, root_q, c.d / T(2));
    return {r * r / T(2), -root_p * r / T(2), root_q * r / T(2)};
  }
};

struct chi2 {
  explicit chi2(double) {}
  static constexpr double reach = 20.0;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const chi2&, Cells<T> c) {
    const T g = growth(c.p, c.q, c.d), e = exp(-c.d);
    return {-g * (magnitude(c.d) < T(1) ? expm1(-c.d) : e - T(1)), T(-2) * g * e, g * (T(1) + e)};
  }
};

struct triangular {
  explicit triangular(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const triangular&, Cells<T> c) {
    const T g = growth(c.p, c.q, c.d), sum = c.p + c.q;
    const T t = sum > T(0) ? g / sum : sum;  // tanh(d/2); NaN stays NaN
    return {g * t, -c.p * t * (T(2) + t), c.q * t * (T(2) - t)};
  }
};

struct nothing {
  explicit nothing(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const nothing&, Cells<T> c) {
    const T zero = T(0) * c.d;
    return {zero, zero, zero};
  }
};

struct cross_entropy {
  explicit cross_entropy(double) {}
  static constexpr double reach = kReach;
  template <class T>
  KULLBACK_INLINE Terms<T> at(const cross_entropy&, Cells<T> c) {
    const T term = -c.p * c.log_q;
    return {term, term, -c.p};
  }
};

// Calls `act` with the generator G of this parameter.
template <class G, class Act>
struct With {
  KULLBACK_INLINE bool call(double parameter, Act act) { return act(G(parameter)); }
};
template <class Act>
struct With<alpha, Act> {
  KULLBACK_INLINE bool call(double order, Act act) {
    return order >= 0.5 ? act(alpha_of<false>(order)) : act(alpha_of<true>(order));
  }
};
template <class Act>
struct With<js, Act> {
  KULLBACK_INLINE bool call(double weight, Act act) { return weight == 0.5 ? act(js_half(weight)) : act(js(weight)); }
};
template <class G, class Act>
KULLBACK_INLINE bool with(double parameter, Act act) {
  return With<G, Act>::call(parameter, act);
}

}  // namespace KULLBACK_ISA
}  // namespace kullback

#endif  // KULLBACK_ISA
