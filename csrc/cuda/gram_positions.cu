// The CUDA twin of sgdkern/ops/gram_positions.py: checks, allocates, launches gram_positions_kernel.cuh.

#include "device.cuh"
#include "gram_positions_launch.h"
#include "queue.h"

namespace sgdkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The distance between rows (n, t) of a factor [N, T, features] that has only one; -1 for others.
int64_t row_stride(const Tensor& factor) {
  if (factor.size(2) > 1 && factor.stride(2) != 1) return -1;
  if (factor.size(1) == 1) return factor.stride(0);
  return factor.size(0) <= 1 || factor.stride(0) == factor.size(1) * factor.stride(1) ? factor.stride(1) : -1;
}

Tensor rows_evenly_spaced(const Tensor& factor) {
  return row_stride(factor) < 0 ? torch::stable::contiguous(factor) : factor;
}

template <class Element>
Factor<Element> rows_of(const Tensor& factor) {
  const Element* data = static_cast<const Element*>(factor.const_data_ptr());
  return {data, factor.size(2), row_stride(factor), alignment_of(data, row_stride(factor))};
}

void check(const Tensor& inputs, const Tensor& output_grads) {
  STD_TORCH_CHECK(inputs.is_cuda() && output_grads.is_cuda() && inputs.get_device_index() == output_grads.get_device_index(),
                  "gram_positions: both factors must be on one CUDA device");
  STD_TORCH_CHECK(inputs.dim() == 3 && output_grads.dim() == 3, "gram_positions: factors must be [N, T, features], got ",
                  inputs.dim(), " and ", output_grads.dim(), " axes");
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0) && inputs.size(1) == output_grads.size(1),
                  "gram_positions: factors must share N and T, got ", inputs.size(0), ", ", inputs.size(1), " and ",
                  output_grads.size(0), ", ", output_grads.size(1));
  STD_TORCH_CHECK(inputs.scalar_type() == output_grads.scalar_type(), "gram_positions: factors must share one dtype");
  STD_TORCH_CHECK(inputs.size(0) <= 1'000'000'000 && inputs.size(1) <= 1'000'000'000,
                  "gram_positions: N * N and N * T must fit in 64 bits, got N = ", inputs.size(0), ", T = ", inputs.size(1));
}

// inputs [N, T, I], output_grads [N, T, O] -> [N, N]
Tensor gram_positions_cuda(Tensor inputs, Tensor output_grads, bool constant_column) {
  check(inputs, output_grads);
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const ScalarType dtype = inputs.scalar_type();
  const ScalarType result_dtype = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t num_samples = inputs.size(0);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, num_samples}, result_dtype);
  const Tensor a = rows_evenly_spaced(inputs), b = rows_evenly_spaced(output_grads);
  with_product("gram_positions", dtype, [&]<class Product>() {
    using Element = typename Product::Element;
    const Layer<Element> layer{{rows_of<Element>(a), rows_of<Element>(b)}, 2, constant_column};
    gram_positions<Product>(layer, num_samples, inputs.size(1), current_queue(device), device_numbers(device),
                            static_cast<typename Product::Sum*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("gram_positions", TORCH_BOX(&gram_positions_cuda));
}

}  // namespace
}  // namespace sgdkern
