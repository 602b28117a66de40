// The CUDA twin of sgdkern/ops/rmatvec.py: checks, allocates, launches rmatvec_kernel.cuh.

#include "device.cuh"
#include "linear.h"

namespace sgdkern {
namespace {

using torch::stable::Tensor;

// inputs [M, I], output_grads [M, O], weights [M] -> [O, I]
Tensor rmatvec_cuda(Tensor inputs, Tensor output_grads, Tensor weights) {
  check_linear("rmatvec", inputs, output_grads, weights, 1);
  STD_TORCH_CHECK(weights.size(0) == inputs.size(0), "rmatvec: weights must be [M] = [", inputs.size(0), "], got [",
                  weights.size(0), "]");
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor result = torch::stable::new_empty(inputs, {output_grads.size(1), inputs.size(1)});
  const Tensor a = rows_contiguous(inputs), d = rows_contiguous(output_grads), w = torch::stable::contiguous(weights);
  with_wide_product("rmatvec", inputs.scalar_type(), [&]<class Product>() {
    using Element = typename Product::Element;
    rmatvec<Product>(factor_of<Element>(a), factor_of<Element>(d), static_cast<const Element*>(w.const_data_ptr()),
                     a.size(0), current_queue(device), device_numbers(device), Scratch<Element>(result),
                     static_cast<Element*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("rmatvec", TORCH_BOX(&rmatvec_cuda));
}

}  // namespace
}  // namespace sgdkern
