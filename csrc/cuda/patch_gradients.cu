// The CUDA twin of sgdkern/ops/patch_gradients.py: checks, allocates, launches what patch_gram_kernel.cuh forms first.

#include "patches.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'] -> [N, O * C * kernel]
Tensor patch_gradients_cuda(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                            std::vector<int64_t> dilation) {
  check_patches("patch_gradients", inputs, output_grads, kernel, stride, dilation);
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ScalarType dtype = inputs.scalar_type();
  const int64_t weights = output_grads.size(1) * inputs.size(1) * kernel[0] * kernel[1];
  const Tensor result = torch::stable::new_empty(inputs, {inputs.size(0), weights}, result_dtype(dtype));
  with_products("patch_gradients", dtype, [&]<class Product, class Source>() {
    form_gradients<Product>(patch_layer<Source>(inputs, output_grads, kernel, stride, dilation), current_queue(device),
                            static_cast<typename Product::Sum*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("patch_gradients", TORCH_BOX(&patch_gradients_cuda));
}

}  // namespace
}  // namespace sgdkern
