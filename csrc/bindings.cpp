// The Python side: addresses and codes in, nothing out. engines/cpu.py is the only caller and has checked everything.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "threads.hpp"

namespace nb = nanobind;
using namespace kullback;

namespace {

using Ints = std::vector<int64_t>;
using Reals = std::vector<double>;
// reading, dtype, address, strides, (inverse temperature, on, off)
using SideCode = std::tuple<int, int, uintptr_t, Ints, Reals>;
// formula, exact_normalizer, (parameter, at_p_zero, at_q_zero, plain p, plain q, slope p, slope q, log_q_slope)
using SumCode = std::tuple<int, bool, Reals>;

const Kernels* chosen = nullptr;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

double log_of(double w) { return w > 0.0 ? std::log(w) : -INFINITY; }

void copy_strides(const Ints& from, int dims, int64_t* to) {
  if (int(from.size()) != dims) throw std::invalid_argument("kullback._cpu: strides do not fit the shape");
  for (int i = 0; i < dims; ++i) to[i] = from[size_t(i)];
}

Side side_of(const SideCode& code, int dims) {
  const auto& [reading, dtype, address, strides, numbers] = code;
  Side side{};
  side.reading = Reading(reading);
  side.dtype = Dtype(dtype);
  side.data = at<const void>(address);
  copy_strides(strides, dims, side.strides);
  side.inverse_temperature = numbers.at(0);
  side.on = numbers.at(1);
  side.off = numbers.at(2);
  side.log_on = log_of(side.on);
  side.log_off = log_of(side.off);
  return side;
}

Job job_of(const SumCode& sum, const Ints& shape, int64_t columns, const SideCode& p, const SideCode& q) {
  const auto& [formula, exact, numbers] = sum;
  if (shape.empty() || shape.size() > size_t(kMaxDims)) throw std::invalid_argument("kullback._cpu: 1 to 16 batch axes");
  Job job{};
  job.formula = Formula(formula);
  job.exact_normalizer = exact;
  job.parameter = numbers.at(0);
  job.edges = {{numbers.at(1), numbers.at(2)}, {numbers.at(3), numbers.at(4)}, {numbers.at(5), numbers.at(6)}, numbers.at(7) != 0.0};
  job.dims = int(shape.size());
  job.num_rows = 1;
  for (int i = 0; i < job.dims; ++i) {
    job.shape[i] = shape[size_t(i)];
    job.num_rows *= shape[size_t(i)];
  }
  job.num_columns = columns;
  job.sides[0] = side_of(p, job.dims);
  job.sides[1] = side_of(q, job.dims);
  return job;
}

void forward_bound(const SumCode& sum, const Ints& shape, int64_t columns, const SideCode& p, const SideCode& q,
                   uintptr_t values, uintptr_t stats, int threads) {
  Job job = job_of(sum, shape, columns, p, q);
  job.values = at<double>(values);
  job.stats = at<Stats>(stats);
  nb::gil_scoped_release release;
  forward(*chosen, job, threads);
}

void backward_bound(const SumCode& sum, const Ints& shape, int64_t columns, const SideCode& p, const SideCode& q,
                    uintptr_t values, uintptr_t stats, uintptr_t upstream, const Ints& upstream_strides, uintptr_t to_p,
                    uintptr_t to_q, int threads) {
  Job job = job_of(sum, shape, columns, p, q);
  job.values = at<double>(values);
  job.stats = at<Stats>(stats);
  job.upstream = at<const double>(upstream);
  copy_strides(upstream_strides, job.dims, job.upstream_strides);
  job.gradients[0] = at<void>(to_p);
  job.gradients[1] = at<void>(to_q);
  nb::gil_scoped_release release;
  backward(*chosen, job, threads);
}

}  // namespace

NB_MODULE(_cpu, m) {
  remember_forks();
  chosen = supported_kernels().front();
  m.def("forward", &forward_bound, nb::arg("sum"), nb::arg("shape"), nb::arg("columns"), nb::arg("p"), nb::arg("q"),
        nb::arg("values"), nb::arg("stats"), nb::arg("threads"));
  m.def("backward", &backward_bound, nb::arg("sum"), nb::arg("shape"), nb::arg("columns"), nb::arg("p"), nb::arg("q"),
        nb::arg("values"), nb::arg("stats"), nb::arg("upstream"), nb::arg("upstream_strides"), nb::arg("to_p"),
        nb::arg("to_q"), nb::arg("threads"));
  m.def("instruction_set", [] { return std::string(chosen->name); });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Kernels* k : supported_kernels()) names.emplace_back(k->name);
    return names;
  });
  m.def("use_instruction_set", [](const std::string& name) {
    for (const Kernels* k : supported_kernels())
      if (name == k->name) {
        chosen = k;
        return;
      }
    throw std::invalid_argument("kullback._cpu: no kernels named " + name + " for this processor");
  });
  m.def("apply", [](int which, bool narrow, uintptr_t x, uintptr_t out, int64_t n) {
    if (narrow) {
      chosen->apply_float(which, at<const float>(x), at<float>(out), n);
    } else {
      chosen->apply_double(which, at<const double>(x), at<double>(out), n);
    }
  });
}
