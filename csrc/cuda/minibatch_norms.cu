// The CUDA twin of sgdkern/ops/minibatch_norms.py: checks, allocates, launches minibatch_norms_kernel.cuh.

#include "device.cuh"
#include "dense_layers.h"
#include "minibatch_norms_launch.h"

namespace sgdkern {
namespace {

using torch::stable::Tensor;

// inputs [N, I_l], output_grads [N, O_l], indices [M, B] -> [M]
Tensor minibatch_norms_cuda(std::vector<Tensor> inputs, std::vector<Tensor> output_grads,
                            std::vector<bool> constant_columns, Tensor indices) {
  check_layers("minibatch_norms", inputs, output_grads, constant_columns);
  const int32_t device = inputs[0].get_device_index();
  STD_TORCH_CHECK(indices.is_cuda() && indices.get_device_index() == device && indices.dim() == 2 &&
                      indices.scalar_type() == torch::headeronly::ScalarType::Long,
                  "minibatch_norms: indices must be int64 [M, B] on the factors' device, got ", indices.dim(), " axes");
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t num_samples = inputs[0].size(0), num_minibatches = indices.size(0), size = indices.size(1);
  const Tensor members = torch::stable::contiguous(indices);
  const auto dtype = inputs[0].scalar_type();
  const Tensor result = torch::stable::new_empty(inputs[0], {num_minibatches}, result_dtype(dtype));
  if (size == 0) return torch::stable::fill_(result, 0.0);
  with_product("minibatch_norms", dtype, [&]<class Product>() {
    using Sum = typename Product::Sum;
    const DenseLayers<typename Product::Element> factors(inputs, output_grads, constant_columns);
    minibatch_norms<Product>(factors.layers(), static_cast<const int64_t*>(members.const_data_ptr()), num_minibatches, size,
                             num_samples, current_queue(device), device_numbers(device), Scratch<Sum>(result),
                             static_cast<Sum*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("minibatch_norms", TORCH_BOX(&minibatch_norms_cuda));
}

}  // namespace
}  // namespace sgdkern
