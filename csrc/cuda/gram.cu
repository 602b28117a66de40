// The CUDA twin of sgdkern/ops/gram.py: checks, allocates, launches gram_kernel.cuh.

#include "device.cuh"
#include "dense_layers.h"

namespace sgdkern {
namespace {

using torch::stable::Tensor;

// inputs [N, I_l], output_grads [N, O_l] -> [N, N]
Tensor gram_cuda(std::vector<Tensor> inputs, std::vector<Tensor> output_grads, std::vector<bool> constant_columns) {
  check_layers("gram", inputs, output_grads, constant_columns);
  const int32_t device = inputs[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t num_samples = inputs[0].size(0), num_layers = inputs.size();
  STD_TORCH_CHECK(num_samples <= 1'000'000'000, "gram: N * N must fit in 64 bits, got N = ", num_samples);
  const auto dtype = inputs[0].scalar_type();
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, num_samples}, result_dtype(dtype));
  with_product("gram", dtype, [&]<class Product>() {
    using Sum = typename Product::Sum;
    const DenseLayers<typename Product::Element> factors(inputs, output_grads, constant_columns);
    GramSum<Product, Queue> sum(current_queue(device), device_numbers(device), num_samples);
    const int64_t num_parts = std::min(sum.most_parts(), fewest_layers_of_a_launch(num_layers));
    const Scratch<Sum> scratch(result);
    Sum* const gram = static_cast<Sum*>(result.mutable_data_ptr());
    Sum* const parts = num_parts == 1 ? gram : scratch(num_parts * num_samples * num_samples);
    sum.add(factors.layers(), num_parts, parts);
    if (num_parts > 1) sum.finish(parts, num_parts, gram);
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("gram", TORCH_BOX(&gram_cuda));
}

}  // namespace
}  // namespace sgdkern
