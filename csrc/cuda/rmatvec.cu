// The CUDA twin of sgdkern/ops/rmatvec.py: checks, allocates, launches rmatvec_kernel.cuh.

#include "device.cuh"
#include "linear.h"

namespace sgdkern {
namespace {

template <class Product>
void run(const Tensor& inputs, const Tensor& output_grads, const Tensor& weights, const Tensor& result) {
  using Element = typename Product::Element;
  const Tensor a = rows_contiguous(inputs), d = rows_contiguous(output_grads), w = torch::stable::contiguous(weights);
  const int32_t device = result.get_device_index();
  Scratch<Element> scratch{result, {}};
  rmatvec<Product>(factor_of<Element>(a), factor_of<Element>(d), static_cast<const Element*>(w.const_data_ptr()), a.size(0),
                   current_queue(device), device_numbers(device), scratch, static_cast<Element*>(result.mutable_data_ptr()));
}

// inputs [M, I], output_grads [M, O], weights [M] -> [O, I]
Tensor rmatvec_cuda(Tensor inputs, Tensor output_grads, Tensor weights) {
  check_linear("rmatvec", inputs, output_grads, weights, 1);
  STD_TORCH_CHECK(weights.size(0) == inputs.size(0), "rmatvec: weights must be [M] = [", inputs.size(0), "], got [",
                  weights.size(0), "]");
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  const Tensor result = torch::stable::new_empty(inputs, {output_grads.size(1), inputs.size(1)});
  SGDKERN_RUN_IN_ITS_ARITHMETIC("rmatvec", inputs, output_grads, weights, result);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("rmatvec", TORCH_BOX(&rmatvec_cuda));
}

}  // namespace
}  // namespace sgdkern
