#pragma once

#include <vector>

#include "job.hpp"

namespace kullback {

// Kernels that this processor can run, best first.
std::vector<const Kernels*> supported_kernels();

void remember_forks();
int64_t first_label_out_of_range(const Job&, int side);  // its row, or -1
void forward(const Kernels&, const Job&, int threads);
void backward(const Kernels&, const Job&, int threads);
void normalize_shard(const Kernels&, const Job&, double* max, double* sum, int threads);
void sum_shard(const Kernels&, const Job&, double* states, int threads);
void total(const Kernels&, const Total&, int threads);

}  // namespace kullback
