// The CUDA twin of sgdkern/ops/matvec.py: checks, allocates, launches matvec_kernel.cuh.

#include "device.cuh"
#include "linear.h"

namespace sgdkern {
namespace {

using torch::stable::Tensor;

// inputs [M, I], output_grads [M, O], vector [O, I] -> [M]
Tensor matvec_cuda(Tensor inputs, Tensor output_grads, Tensor vector) {
  check_linear("matvec", inputs, output_grads, vector, 2);
  STD_TORCH_CHECK(vector.size(0) == output_grads.size(1) && vector.size(1) == inputs.size(1),
                  "matvec: the vector must be [O, I] = [", output_grads.size(1), ", ", inputs.size(1), "], got [",
                  vector.size(0), ", ", vector.size(1), "]");
  const int32_t device = inputs.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor result = torch::stable::new_empty(inputs, {inputs.size(0)});
  const Tensor a = rows_contiguous(inputs), d = rows_contiguous(output_grads), v = rows_contiguous(vector);
  with_wide_product("matvec", inputs.scalar_type(), [&]<class Product>() {
    using Element = typename Product::Element;
    matvec<Product>(factor_of<Element>(a), factor_of<Element>(d), factor_of<Element>(v), a.size(0), current_queue(device),
                    device_numbers(device), Scratch<Element>(result), static_cast<Element*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("matvec", TORCH_BOX(&matvec_cuda));
}

}  // namespace
}  // namespace sgdkern
