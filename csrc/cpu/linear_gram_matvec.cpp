// The CPU twin of sgdkern/ops/linear_gram_matvec.py: checks, allocates, calls linear_gram_matvec.h.

#include "linear_gram_matvec.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// inputs [N, I], output_grads [N, O], weights [N, k] -> [N, 1 + k]
Tensor linear_gram_matvec_cpu(Tensor inputs, Tensor output_grads, bool constant_column, Tensor weights) {
  const std::vector<Tensor> as{inputs}, ds{output_grads};
  const std::vector<bool> constant_columns{constant_column};
  const int64_t num_samples = check_dense_factors("linear_gram_matvec", as, ds, constant_columns);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t num_columns = check_weights("linear_gram_matvec", weights, num_samples, dtype);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, 1 + num_columns}, result_dtype(dtype));
  const Tensor rows = torch::stable::contiguous(weights);
  with_types("linear_gram_matvec", dtype, [&]<class T, class Source>() {
    const DenseFactors<Source> factors(as, ds, constant_columns);
    const bool done = linear_gram_matvec<T, Source>(factors.layers()[0], num_samples,
                                                    static_cast<const T*>(rows.const_data_ptr()), num_columns,
                                                    best_instruction_set(), kTorchThreads,
                                                    static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "linear_gram_matvec: not enough memory for scaled output gradients. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("linear_gram_matvec", TORCH_BOX(&linear_gram_matvec_cpu));
}

}  // namespace
}  // namespace sgdkern
