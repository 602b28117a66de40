// The CPU twin of sgdkern/ops/minibatch_norms.py: checks, allocates, calls minibatch_norms.h.

#include "minibatch_norms.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// inputs [N, I_l], output_grads [N, O_l], indices [M, B] -> [M]
Tensor minibatch_norms_cpu(std::vector<Tensor> inputs, std::vector<Tensor> output_grads,
                           std::vector<bool> constant_columns, Tensor indices) {
  const int64_t num_samples = check_dense_factors("minibatch_norms", inputs, output_grads, constant_columns);
  STD_TORCH_CHECK(indices.is_cpu() && indices.dim() == 2 && indices.scalar_type() == ScalarType::Long,
                  "minibatch_norms: indices must be int64 [M, B] on the CPU, got ", indices.dim(), " axes");
  const int64_t num_minibatches = indices.size(0), size = indices.size(1);
  const Tensor members = torch::stable::contiguous(indices);
  const int64_t* first = static_cast<const int64_t*>(members.const_data_ptr());
  for (int64_t i = 0; i < num_minibatches * size; ++i) {
    STD_TORCH_CHECK(0 <= first[i] && first[i] < num_samples, "minibatch_norms: indices must be below ", num_samples,
                    ", got ", first[i]);
  }
  const ScalarType dtype = inputs[0].scalar_type();
  const Tensor result = torch::stable::new_empty(inputs[0], {num_minibatches}, result_dtype(dtype));
  with_types("minibatch_norms", dtype, [&]<class T, class Source>() {
    const DenseFactors<Source> factors(inputs, output_grads, constant_columns);
    minibatch_norms<T, Source>(factors.layers(), first, num_minibatches, size, best_instruction_set(), kTorchThreads,
                               static_cast<T*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("minibatch_norms", TORCH_BOX(&minibatch_norms_cpu));
}

}  // namespace
}  // namespace sgdkern
