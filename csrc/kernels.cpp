// Compiled once per instruction set, with KULLBACK_ISA naming it.
#include "reduction.hpp"
#include "shards.hpp"
#include "total.hpp"

#define KULLBACK_STRING_(x) #x
#define KULLBACK_STRING(x) KULLBACK_STRING_(x)

namespace kullback {
namespace KULLBACK_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    KULLBACK_STRING(KULLBACK_ISA),
    forward_rows,
    backward_rows,
    normalize_piece,
    merge_normalizers,
    sum_piece,
    merge_sums,
    backward_piece,
    normalize_shard,
    sum_shard,
    plan_total,
    total_rows,
    total_weights,
    normalize_shared,
    total_merge_normalizers,
    sum_shared,
    total_merge_sums,
    gradient_shared,
    total_count,
    rows_together,
    kept_floats,
    apply<double>,
    apply<float>,
};

}  // namespace KULLBACK_ISA
}  // namespace kullback
