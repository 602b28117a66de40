// The CPU twin of sgdkern/ops/gram_matvec.py: checks, allocates, calls gram_matvec.h.

#include "gram_matvec.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// inputs [N, I_l], output_grads [N, O_l], weights [N, k] -> [N, 1 + k]
Tensor gram_matvec_cpu(std::vector<Tensor> inputs, std::vector<Tensor> output_grads, std::vector<bool> constant_columns,
                       Tensor weights) {
  const int64_t num_samples = check_dense_factors("gram_matvec", inputs, output_grads, constant_columns);
  const ScalarType dtype = inputs[0].scalar_type();
  const int64_t num_columns = check_weights("gram_matvec", weights, num_samples, dtype);
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, 1 + num_columns}, result_dtype(dtype));
  const Tensor rows = torch::stable::contiguous(weights);
  with_types("gram_matvec", dtype, [&]<class T, class Source>() {
    const DenseFactors<Source> factors(inputs, output_grads, constant_columns);
    const bool done = gram_matvec<T, Source>(factors.layers(), num_samples, static_cast<const T*>(rows.const_data_ptr()),
                                             num_columns, best_instruction_set(), kTorchThreads,
                                             torch::stable::get_num_threads(), static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "gram_matvec: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("gram_matvec", TORCH_BOX(&gram_matvec_cpu));
}

}  // namespace
}  // namespace sgdkern
