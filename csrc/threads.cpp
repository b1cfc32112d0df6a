// Who computes which rows. Work is cut by rows and columns alone, never by the number of threads, so that the bits of
// a result are the same for any number of them.
#include "threads.hpp"

#include <pthread.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

namespace kullback {

#define KULLBACK_DECLARE(isa)   \
  namespace isa {               \
  extern const Kernels kernels; \
  }
KULLBACK_DECLARE(baseline)
#ifdef KULLBACK_X86
KULLBACK_DECLARE(avx2)
KULLBACK_DECLARE(avx512)
#endif

namespace {

bool forked = false;  // a child of fork() has none of its parent's OpenMP threads and must not wait for them

constexpr int64_t kCellsWorthAThread = 32768;

int team(int threads, int64_t cells) {
  if (forked) return 1;
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, cells / kCellsWorthAThread)));
}

template <class Work>
void each(int64_t count, int threads, Work work) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) work(i);
}

// Contiguous shares of the rows, each a multiple of `together` rows long.
template <class Work>
void each_share(int64_t rows, int64_t together, int threads, Work work) {
  const int64_t groups = (rows + together - 1) / together;
  const int64_t shares = threads == 1 ? 1 : std::min<int64_t>(groups, int64_t(threads) * 4);
  each(shares, threads, [&](int64_t i) {
    const int64_t first = groups * i / shares * together, last = std::min(rows, groups * (i + 1) / shares * together);
    if (first < last) work(first, last);
  });
}

// This thread's room for what rows keep between stages: at least kKeptFloats, and the same memory at every call unless
// it must grow. Null for 0, and where there is no memory: rows then keep nothing and compute their exponentials twice.
float* room_for(int64_t floats) {
  thread_local std::unique_ptr<float, decltype(&std::free)> room(nullptr, &std::free);
  thread_local int64_t size = 0;
  if (floats == 0) return nullptr;
  if (floats > size) {
    size = std::max(floats, kKeptFloats);
    room.reset(static_cast<float*>(std::aligned_alloc(64, size_t(size * 4 + 63) / 64 * 64)));
    if (!room) size = 0;
  }
  return room.get();
}

// A large fresh gradient costs more in page faults than in arithmetic: ask for large pages where they are to be had.
// Below 32 MiB an allocator keeps what was freed, and there are no faults to save.
void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t large = uintptr_t(1) << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + large - 1) & ~(large - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~(large - 1);
  if (data != nullptr && bytes >= (int64_t(32) << 20))
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

bool few_long_rows(const Job& job, int threads) {
  return threads > 1 && job.num_columns > kPiece && job.num_rows < int64_t(threads) * 8;
}

}  // namespace

void remember_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

int64_t first_label_out_of_range(const Job& job, int side) {
  const Reading reading = job.sides[side].reading;
  const bool listed = reading == Reading::even || reading == Reading::coarse;
  if (reading != Reading::labels && !listed) return -1;
  const int64_t* labels = static_cast<const int64_t*>(job.sides[side].data);
  for (int64_t row = 0; row < job.num_rows; ++row) {
    int64_t at = 0, rest = row;
    for (int axis = job.dims - 1; axis >= 0; --axis) {
      at += (rest % job.shape[axis]) * job.sides[side].strides[axis];
      rest /= job.shape[axis];
    }
    const int64_t first = listed ? at + kListedHead : at, count = listed ? labels[at] : 1;
    for (int64_t i = first; i < first + count; ++i)
      if (labels[i] < 0 || labels[i] >= job.num_columns) return row;
  }
  return -1;
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> found;
#ifdef KULLBACK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    found.push_back(&avx512::kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

void forward(const Kernels& kernels, const Job& job, int threads) {
  const int64_t each_keeps = kernels.kept_floats(job);
  const int members = team(threads, job.num_rows * job.num_columns);
  if (!few_long_rows(job, members)) {
    each_share(job.num_rows, kernels.rows_together(job), members,
               [&](int64_t first, int64_t last) { kernels.forward_rows(job, first, last, room_for(each_keeps)); });
    return;
  }
  const int64_t pieces = (job.num_columns + kPiece - 1) / kPiece;
  std::vector<Piece> parts(static_cast<size_t>(pieces));
  float* kept = room_for(each_keeps);
  for (int64_t row = 0; row < job.num_rows; ++row) {
    Stats stats[2];
    each(pieces, members, [&](int64_t i) { kernels.normalize_piece(job, row, i, kept, parts[size_t(i)]); });
    kernels.merge_normalizers(job, parts.data(), pieces, stats);
    each(pieces, members, [&](int64_t i) { kernels.sum_piece(job, row, i, stats, kept, parts[size_t(i)]); });
    store_value(job, row, kernels.merge_sums(job, parts.data(), pieces, stats));
    if (job.stats != nullptr) std::copy(stats, stats + 2, job.stats + 2 * row);
  }
}

void backward(const Kernels& kernels, const Job& job, int threads) {
  for (int side = 0; side < 2; ++side)
    prefer_large_pages(job.gradients[side], job.num_rows * job.num_columns * size_of(job.sides[side].dtype));
  const int members = team(threads, job.num_rows * job.num_columns);
  if (!few_long_rows(job, members)) {
    each_share(job.num_rows, kernels.rows_together(job), members,
               [&](int64_t first, int64_t last) { kernels.backward_rows(job, first, last); });
    return;
  }
  const int64_t pieces = (job.num_columns + kPiece - 1) / kPiece;
  each(job.num_rows * pieces, members, [&](int64_t i) { kernels.backward_piece(job, i / pieces, i % pieces); });
}

void normalize_shard(const Kernels& kernels, const Job& job, double* max, double* sum, int threads) {
  const int64_t each_keeps = kernels.kept_floats(job);
  each_share(job.num_rows, 1, team(threads, job.num_rows * job.num_columns), [&](int64_t first, int64_t last) {
    kernels.normalize_shard(job, first, last, room_for(each_keeps), max, sum);
  });
}

void sum_shard(const Kernels& kernels, const Job& job, double* states, int threads) {
  each_share(job.num_rows, 1, team(threads, job.num_rows * job.num_columns),
             [&](int64_t first, int64_t last) { kernels.sum_shard(job, first, last, states); });
}

void total(const Kernels& kernels, const Total& given, int threads) {
  // Rows are added in groups, and groups in order: neither depends on the number of threads.
  constexpr int64_t most_groups = 4096;
  static Stats wanted;  // a job that has somewhere to keep its statistics sums x
  std::vector<Term> terms(given.terms, given.terms + given.num_terms);
  for (Term& term : terms) term.job.stats = term.outputs[0] >= 0 || term.outputs[1] >= 0 ? &wanted : nullptr;
  Total total = given;
  total.terms = terms.data();
  Plan plan;
  kernels.plan_total(total, plan);
  const Job& any = terms.front().job;
  const int64_t rows = any.num_rows;
  for (int k = 0; k < total.num_outputs; ++k)
    prefer_large_pages(total.outputs[k].data, rows * any.num_columns * size_of(total.outputs[k].dtype));
  std::fill(total.values, total.values + total.num_terms, 0.0);
  const int members = team(threads, rows * any.num_columns);
  if (few_long_rows(any, members)) {
    const int64_t pieces = (any.num_columns + kPiece - 1) / kPiece;
    std::vector<TotalPiece> parts(static_cast<size_t>(pieces));
    float* kept = room_for(plan.kept_floats);
    for (int64_t row = 0; row < rows; ++row) {
      TotalRow t;
      kernels.total_weights(plan, row, t);
      each(pieces, members, [&](int64_t i) { kernels.total_normalize_piece(plan, t, row, i, kept, parts[size_t(i)]); });
      kernels.total_merge_normalizers(plan, row, parts.data(), pieces, kept, t);
      each(pieces, members, [&](int64_t i) { kernels.total_sum_piece(plan, t, row, i, kept, parts[size_t(i)]); });
      kernels.total_merge_sums(plan, parts.data(), pieces, kept, t);
      if (total.num_outputs > 0)
        each(pieces, members, [&](int64_t i) { kernels.total_gradient_piece(plan, t, row, i, kept); });
      kernels.total_count(plan, row, t, total.values);
    }
    return;
  }
  const int64_t least = (rows + most_groups - 1) / most_groups, together = plan.rows_together;
  const int64_t size = (least + together - 1) / together * together;
  const int64_t groups = size == 0 ? 0 : (rows + size - 1) / size;
  std::vector<double> sums(size_t(groups) * terms.size());
  each_share(groups, 1, members, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      kernels.total_rows(plan, i * size, std::min(rows, (i + 1) * size), room_for(plan.kept_floats),
                         sums.data() + size_t(i) * terms.size());
  });
  for (int64_t i = 0; i < groups; ++i)
    for (size_t k = 0; k < terms.size(); ++k) total.values[k] += sums[size_t(i) * terms.size() + k];
}

}  // namespace kullback
