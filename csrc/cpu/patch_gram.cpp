// The CPU twin of sgdkern/ops/patch_gram.py: checks, allocates, calls patch_gram.h.

#include "patch_gram.h"

#include "patches.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'] -> [N, N]
Tensor patch_gram_cpu(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                      std::vector<int64_t> dilation) {
  check_patches("patch_gram", inputs, output_grads, kernel, stride, dilation);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t num_samples = inputs.size(0);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, num_samples}, result_dtype(dtype));
  const Tensor a = dense(inputs), b = dense(output_grads);
  with_types("patch_gram", dtype, [&]<class T, class Source>() {
    const bool done = patch_gram<T, Source>(patch_layer<Source>(a, b, kernel, stride, dilation), num_samples,
                    best_instruction_set(), kTorchThreads, static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "patch_gram: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("patch_gram", TORCH_BOX(&patch_gram_cpu));
}

}  // namespace
}  // namespace sgdkern
