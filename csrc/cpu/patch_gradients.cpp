// The CPU twin of sgdkern/ops/patch_gradients.py: checks, allocates, calls patch_gradients.h.

#include "patch_gradients.h"

#include "patches.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'] -> [N, O * C * kernel]
Tensor patch_gradients_cpu(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                           std::vector<int64_t> dilation) {
  check_patches("patch_gradients", inputs, output_grads, kernel, stride, dilation);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t num_samples = inputs.size(0);
  int64_t weights = output_grads.size(1), numbers = 0;
  for (const int64_t factor : {inputs.size(1), kernel[0], kernel[1]}) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(weights, factor, &weights), "patch_gradients: the weight's size overflows");
  }
  STD_TORCH_CHECK(!__builtin_mul_overflow(weights, 8 * num_samples, &numbers),
                  "patch_gradients: N * P must fit in 64 bits, got N = ", num_samples, ", P = ", weights);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, weights}, result_dtype(dtype));
  const Tensor a = dense(inputs), b = dense(output_grads);
  with_types("patch_gradients", dtype, [&]<class T, class Source>() {
    const bool done = patch_gradients<T, Source>(patch_layer<Source>(a, b, kernel, stride, dilation), num_samples,
                    best_instruction_set(), kTorchThreads, static_cast<T*>(result.mutable_data_ptr()));
    STD_TORCH_CHECK(done, "patch_gradients: not enough memory for a packed copy of the factors. Use fewer samples.");
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("patch_gradients", TORCH_BOX(&patch_gradients_cpu));
}

}  // namespace
}  // namespace sgdkern
