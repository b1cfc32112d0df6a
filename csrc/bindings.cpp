// The Python side. A call holds what a pair of readings, dtypes and a sum decide; its methods take addresses, strides.
// engines/cpu.py is the only caller and has checked tensors; what an address means is checked here by name.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "threads.hpp"

namespace nb = nanobind;
using namespace kullback;

namespace {

using Ints = std::vector<int64_t>;
// reading, dtype, temperature, weight at the label, weight elsewhere
using SideCode = std::tuple<std::string, std::string, double, double, double>;
// at_p_zero, at_q_zero, plain of p and q, slope of p and q, log_q_slope
using EdgeCode = std::tuple<double, double, double, double, double, double, bool>;

const Kernels* chosen = nullptr;

template <class Code>
using Names = std::vector<std::pair<const char*, Code>>;

#define KULLBACK_NAMED(name) {#name, Formula::name},
const Names<Formula> kFormulas = {KULLBACK_GENERATORS(KULLBACK_NAMED){"log_affinity", Formula::log_affinity}};
const Names<Reading> kReadings = {{"logits", Reading::logits}, {"log_probs", Reading::log_probs},
                                  {"probs", Reading::probs},   {"labels", Reading::labels},
                                  {"even", Reading::even},     {"coarse", Reading::coarse}};
const Names<Dtype> kDtypes = {{"float64", Dtype::float64},
                              {"float32", Dtype::float32},
                              {"bfloat16", Dtype::bfloat16},
                              {"float16", Dtype::float16}};

template <class Code>
Code find(const Names<Code>& names, const std::string& name) {
  for (const auto& [known, code] : names)
    if (name == known) return code;
  throw std::invalid_argument("kullback._cpu: no code for " + name);
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

double log_of(double w) { return w > 0.0 ? std::log(w) : -INFINITY; }

Side side_of(const SideCode& code) {
  const auto& [reading, dtype, temperature, on, off] = code;
  Side side{};
  side.reading = find(kReadings, reading);
  side.dtype = dtype.empty() ? Dtype::float64 : find(kDtypes, dtype);
  if (!(temperature > 0.0)) throw std::invalid_argument("kullback._cpu: a temperature is above 0");
  side.inverse_temperature = 1.0 / temperature;
  side.on = on;
  side.off = off;
  side.log_on = log_of(on);
  side.log_off = log_of(off);
  return side;
}

void copy_strides(const Ints& from, int dims, int64_t* to) {
  if (int(from.size()) != dims) throw std::invalid_argument("kullback._cpu: strides do not fit the shape");
  for (int i = 0; i < dims; ++i) to[i] = from[size_t(i)];
}

struct Call {
  Job job{};

  Call(const std::string& formula, double parameter, const EdgeCode& edges, bool exact_normalizer, const SideCode& p,
       const SideCode& q, int64_t columns, bool shard) {
    job.formula = find(kFormulas, formula);
    job.parameter = parameter;
    const auto& [p_zero, q_zero, plain_p, plain_q, slope_p, slope_q, log_q_slope] = edges;
    job.edges = {{p_zero, q_zero}, {plain_p, plain_q}, {slope_p, slope_q}, log_q_slope};
    job.exact_normalizer = exact_normalizer;
    job.sides[0] = side_of(p);
    job.sides[1] = side_of(q);
    if (columns < 1) throw std::invalid_argument("kullback._cpu: at least one column");
    job.num_columns = columns;
    job.shard = shard;
    job.scale = 1.0;
  }

  Job over(const Ints& shape, uintptr_t p, const Ints& p_strides, uintptr_t q, const Ints& q_strides) const {
    if (shape.empty() || shape.size() > size_t(kMaxDims))
      throw std::invalid_argument("kullback._cpu: 1 to 16 batch axes");
    Job called = job;
    called.dims = int(shape.size());
    called.num_rows = 1;
    for (int i = 0; i < called.dims; ++i) {
      called.shape[i] = shape[size_t(i)];
      called.num_rows *= shape[size_t(i)];
    }
    called.sides[0].data = at<const void>(p);
    called.sides[1].data = at<const void>(q);
    copy_strides(p_strides, called.dims, called.sides[0].strides);
    copy_strides(q_strides, called.dims, called.sides[1].strides);
    return called;
  }

  void forward(const Ints& shape, uintptr_t p, const Ints& p_strides, uintptr_t q, const Ints& q_strides,
               uintptr_t values, uintptr_t stats, uintptr_t out, bool out_is_double, double scale, int threads) const {
    Job called = over(shape, p, p_strides, q, q_strides);
    called.values = at<double>(values);
    called.stats = at<Stats>(stats);
    called.out = at<void>(out);
    called.out_is_double = out_is_double;
    called.scale = scale;
    check_labels(called);
    nb::gil_scoped_release release;
    kullback::forward(*chosen, called, threads);
  }

  void backward(const Ints& shape, uintptr_t p, const Ints& p_strides, uintptr_t q, const Ints& q_strides,
                uintptr_t values, uintptr_t stats, uintptr_t upstream, const Ints& upstream_strides,
                bool upstream_is_double, double scale, uintptr_t to_p, uintptr_t to_q, int threads) const {
    Job called = over(shape, p, p_strides, q, q_strides);
    if (values == 0 || stats == 0 || upstream == 0) throw std::invalid_argument("kullback._cpu: a pointer is missing");
    called.values = at<double>(values);
    called.stats = at<Stats>(stats);
    called.upstream = at<const void>(upstream);
    called.upstream_is_double = upstream_is_double;
    called.scale = scale;
    copy_strides(upstream_strides, called.dims, called.upstream_strides);
    called.gradients[0] = at<void>(to_p);
    called.gradients[1] = at<void>(to_q);
    nb::gil_scoped_release release;
    kullback::backward(*chosen, called, threads);
  }

  void normalize_shard(const Ints& shape, uintptr_t p, const Ints& p_strides, uintptr_t q, const Ints& q_strides,
                       uintptr_t max, uintptr_t sum, int threads) const {
    if (!job.shard || max == 0 || sum == 0) throw std::invalid_argument("kullback._cpu: no shard, or nowhere to write");
    const Job called = over(shape, p, p_strides, q, q_strides);
    nb::gil_scoped_release release;
    kullback::normalize_shard(*chosen, called, at<double>(max), at<double>(sum), threads);
  }

  void sum_shard(const Ints& shape, uintptr_t p, const Ints& p_strides, uintptr_t q, const Ints& q_strides,
                 uintptr_t stats, uintptr_t states, int threads) const {
    if (!job.shard || stats == 0 || states == 0)
      throw std::invalid_argument("kullback._cpu: no shard, or nowhere to write");
    Job called = over(shape, p, p_strides, q, q_strides);
    called.stats = at<Stats>(stats);
    nb::gil_scoped_release release;
    kullback::sum_shard(*chosen, called, at<double>(states), threads);
  }

  static void check_labels(const Job& job) {
    for (int side = 0; side < 2; ++side)
      if (const int64_t row = first_label_out_of_range(job, side); row >= 0)
        throw std::out_of_range("kullback: a class of row " + std::to_string(row) + " is outside of 0 to " +
                                std::to_string(job.num_columns - 1));
  }
};

// call, addresses and strides of p and of q, address and strides of the weights, output of p's gradient and of q's or -1
using TermCode = std::tuple<const Call*, uintptr_t, Ints, uintptr_t, Ints, uintptr_t, Ints, int, int>;
using OutputCode = std::tuple<std::string, uintptr_t>;  // dtype, address

void total_bound(const Ints& shape, const std::vector<TermCode>& codes, const std::vector<OutputCode>& places,
                 uintptr_t values, int threads, uintptr_t rows) {
  if (codes.empty() || codes.size() > size_t(kMaxTerms)) throw std::invalid_argument("kullback._cpu: 1 to 8 terms");
  if (places.size() > size_t(kMaxOutputs)) throw std::invalid_argument("kullback._cpu: too many outputs");
  std::vector<Term> terms;
  for (const auto& [call, p, p_strides, q, q_strides, weights, weight_strides, to_p, to_q] : codes) {
    Term term{};
    term.job = call->over(shape, p, p_strides, q, q_strides);
    if (term.job.formula == Formula::log_affinity ||
        term.job.num_columns != std::get<0>(codes.front())->job.num_columns)
      throw std::invalid_argument("kullback._cpu: these terms make no total");
    Call::check_labels(term.job);
    term.weights = at<const double>(weights);
    copy_strides(weight_strides, term.job.dims, term.weight_strides);
    for (const int output : {to_p, to_q})
      if (output < -1 || output >= int(places.size())) throw std::invalid_argument("kullback._cpu: no such output");
    term.outputs[0] = to_p;
    term.outputs[1] = to_q;
    terms.push_back(term);
  }
  std::vector<Output> outputs;
  for (const auto& [dtype, address] : places) outputs.push_back({find(kDtypes, dtype), at<void>(address)});
  const Total total{int(terms.size()), int(outputs.size()), terms.data(),
                    outputs.data(),    at<double>(values),  rows == 0 ? nullptr : at<double>(rows)};
  nb::gil_scoped_release release;
  kullback::total(*chosen, total, threads);
}

template <class Code>
std::vector<std::string> listed(const Names<Code>& names) {
  std::vector<std::string> result;
  for (const auto& entry : names) result.emplace_back(entry.first);
  return result;
}

}  // namespace

NB_MODULE(_cpu, m) {
  nb::set_leak_warnings(false);  // calls are kept as long as the process lives
  remember_forks();
  chosen = supported_kernels().front();
  nb::class_<Call>(m, "Call")
      .def(nb::init<const std::string&, double, const EdgeCode&, bool, const SideCode&, const SideCode&, int64_t,
                    bool>())
      .def("forward", &Call::forward)
      .def("backward", &Call::backward)
      .def("normalize_shard", &Call::normalize_shard)
      .def("sum_shard", &Call::sum_shard);
  m.def("total", &total_bound, nb::arg("shape"), nb::arg("terms"), nb::arg("outputs"), nb::arg("values"),
        nb::arg("threads"), nb::arg("rows") = 0);
  m.attr("max_terms") = kMaxTerms;
  m.attr("listed_head") = kListedHead;
  m.def("formulas", [] { return listed(kFormulas); });
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
