// The CUDA twin of sgdkern/ops/patch_gram.py: checks, allocates, launches patch_gram_kernel.cuh.

#include "patches.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'] -> [N, N]
Tensor patch_gram_cuda(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                       std::vector<int64_t> dilation) {
  check_patches("patch_gram", inputs, output_grads, kernel, stride, dilation);
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t num_samples = inputs.size(0);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, num_samples}, result_dtype(dtype));
  with_products("patch_gram", dtype, [&]<class Product, class Source>() {
    using Sum = typename Product::Sum;
    patch_gram<Product, Source>(patch_layer<Source>(inputs, output_grads, kernel, stride, dilation), current_queue(device),
                                device_numbers(device), kChunkBudget, Scratch<Sum>(result),
                                static_cast<Sum*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("patch_gram", TORCH_BOX(&patch_gram_cuda));
}

}  // namespace
}  // namespace sgdkern
