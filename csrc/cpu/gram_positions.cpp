// The CPU twin of sgdkern/ops/gram_positions.py: checks, allocates, calls gram_positions.h.

#include "gram_positions.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// The distance between rows (n, t) of a factor [N, T, features] that has only one; -1 for others.
int64_t row_stride(const Tensor& factor) {
  if (factor.size(2) > 1 && factor.stride(2) != 1) return -1;
  if (factor.size(1) == 1) return factor.stride(0);
  return factor.size(0) <= 1 || factor.stride(0) == factor.size(1) * factor.stride(1) ? factor.stride(1) : -1;
}

Tensor rows_evenly_spaced(const Tensor& factor) {
  return row_stride(factor) < 0 ? torch::stable::contiguous(factor) : factor;
}

// inputs [N, T, I], output_grads [N, T, O] -> [N, N]
Tensor gram_positions_cpu(Tensor inputs, Tensor output_grads, bool constant_column) {
  STD_TORCH_CHECK(inputs.is_cpu() && output_grads.is_cpu(), "gram_positions: both factors must be on the CPU");
  STD_TORCH_CHECK(inputs.dim() == 3 && output_grads.dim() == 3, "gram_positions: factors must be [N, T, features], got ",
                  inputs.dim(), " and ", output_grads.dim(), " axes");
  const int64_t num_samples = inputs.size(0), num_positions = inputs.size(1);
  STD_TORCH_CHECK(output_grads.size(0) == num_samples && output_grads.size(1) == num_positions,
                  "gram_positions: factors must share N and T, got ", num_samples, ", ", num_positions, " and ",
                  output_grads.size(0), ", ", output_grads.size(1));
  const ScalarType dtype = inputs.scalar_type();
  STD_TORCH_CHECK(output_grads.scalar_type() == dtype, "gram_positions: factors must share one dtype");
  STD_TORCH_CHECK(num_samples <= kMostSamples && num_positions <= kMostSamples,
                  "gram_positions: N * N and N * T must fit in 64 bits, got N = ", num_samples, ", T = ", num_positions);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, num_samples}, result_dtype(dtype));
  const Tensor a = rows_evenly_spaced(inputs), b = rows_evenly_spaced(output_grads);
  with_types("gram_positions", dtype, [&]<class T, class Source>() {
    const Layer<Source> layer{static_cast<const Source*>(a.const_data_ptr()),
                              static_cast<const Source*>(b.const_data_ptr()), a.size(2), b.size(2), row_stride(a),
                              row_stride(b), constant_column};
    const bool done = gram_positions<T, Source>(layer, num_samples, num_positions, best_instruction_set(), kTorchThreads,
                                                static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "gram_positions: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("gram_positions", TORCH_BOX(&gram_positions_cpu));
}

}  // namespace
}  // namespace sgdkern
