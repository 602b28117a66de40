// The CPU twin of sgdkern/ops/gram.py: checks, allocates, calls gram.h.

#include "tensors.h"

namespace sgdkern {
namespace {

// inputs [N, I_l], output_grads [N, O_l] -> [N, N]
Tensor gram_cpu(std::vector<Tensor> inputs, std::vector<Tensor> output_grads, std::vector<bool> constant_columns) {
  const int64_t num_samples = check_dense_factors("gram", inputs, output_grads, constant_columns);
  const ScalarType dtype = inputs[0].scalar_type();
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, num_samples}, result_dtype(dtype));
  with_types("gram", dtype, [&]<class T, class Source>() {
    const DenseFactors<Source> factors(inputs, output_grads, constant_columns);
    const bool done = gram<T, Source>(factors.layers(), num_samples, best_instruction_set(), kTorchThreads,
                                      torch::stable::get_num_threads(), static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "gram: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("gram", TORCH_BOX(&gram_cpu));
}

}  // namespace
}  // namespace sgdkern
