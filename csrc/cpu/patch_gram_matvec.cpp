// The CPU twin of sgdkern/ops/patch_gram_matvec.py: checks, allocates, calls patch_gram_matvec.h.

#include "patch_gram_matvec.h"

#include "patches.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'], weights [N, k] -> [N, 1 + k]
Tensor patch_gram_matvec_cpu(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                             std::vector<int64_t> dilation, Tensor weights) {
  check_patches("patch_gram_matvec", inputs, output_grads, kernel, stride, dilation);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t num_samples = inputs.size(0);
  const int64_t num_columns = check_weights("patch_gram_matvec", weights, num_samples, dtype);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, 1 + num_columns}, result_dtype(dtype));
  const Tensor a = dense(inputs), b = dense(output_grads), rows = torch::stable::contiguous(weights);
  with_types("patch_gram_matvec", dtype, [&]<class T, class Source>() {
    const bool done = patch_gram_matvec<T, Source>(patch_layer<Source>(a, b, kernel, stride, dilation), num_samples,
                                                   static_cast<const T*>(rows.const_data_ptr()), num_columns,
                                                   best_instruction_set(), kTorchThreads,
                                                   static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "patch_gram_matvec: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("patch_gram_matvec", TORCH_BOX(&patch_gram_matvec_cpu));
}

}  // namespace
}  // namespace sgdkern
