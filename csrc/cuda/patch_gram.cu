// The CUDA twin of sgdkern/ops/patch_gram.py: checks, allocates, launches patch_gram_kernel.cuh.

#include "device.cuh"
#include "patch_gram_launch.h"
#include "queue.h"

namespace sgdkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Product, class Source>
void run(const Tensor& inputs, const Tensor& output_grads, const std::vector<int64_t>& kernel,
         const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation, const Tensor& result) {
  using Sum = typename Product::Sum;
  PatchLayer<Source> layer;
  layer.inputs = static_cast<const Source*>(inputs.const_data_ptr());
  layer.output_grads = static_cast<const Source*>(output_grads.const_data_ptr());
  for (int axis = 0; axis < 4; ++axis) {
    layer.input_strides[axis] = inputs.stride(axis);
    layer.output_strides[axis] = output_grads.stride(axis);
  }
  for (int axis = 0; axis < 2; ++axis) {
    layer.kernel[axis] = kernel[axis], layer.stride[axis] = stride[axis], layer.dilation[axis] = dilation[axis];
  }
  layer.num_samples = inputs.size(0);
  layer.num_outputs = output_grads.size(1);
  layer.num_taps = inputs.size(1) * kernel[0] * kernel[1];
  layer.position_columns = output_grads.size(3);
  layer.num_positions = output_grads.size(2) * output_grads.size(3);
  const int32_t device = inputs.get_device_index();
  patch_gram<Product, Source>(layer, current_queue(device), device_numbers(device), kChunkBudget, Scratch<Sum>(result),
                              static_cast<Sum*>(result.mutable_data_ptr()));
}

// inputs [N, C, H, W], already padded; output_grads [N, O, H', W'] -> [N, N]
Tensor patch_gram_cuda(Tensor inputs, Tensor output_grads, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                       std::vector<int64_t> dilation) {
  STD_TORCH_CHECK(inputs.is_cuda() && output_grads.is_cuda() && inputs.get_device_index() == output_grads.get_device_index(),
                  "patch_gram: both factors must be on one CUDA device");
  STD_TORCH_CHECK(inputs.dim() == 4 && output_grads.dim() == 4, "patch_gram: factors must have 4 axes, got ",
                  inputs.dim(), " and ", output_grads.dim());
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0), "patch_gram: factors must share N, got ", inputs.size(0),
                  " and ", output_grads.size(0));
  STD_TORCH_CHECK(inputs.scalar_type() == output_grads.scalar_type(), "patch_gram: factors must share one dtype");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2,
                  "patch_gram: kernel, stride and dilation must have two entries");
  for (int axis = 0; axis < 2; ++axis) {
    constexpr int64_t kMost = int64_t{1} << 30;  // so that the products below stay in 64 bits
    for (const int64_t value : {kernel[axis], stride[axis], dilation[axis]}) {
      STD_TORCH_CHECK(1 <= value && value <= kMost, "patch_gram: kernel, stride and dilation must be positive");
    }
    const int64_t outputs = output_grads.size(2 + axis);
    const int64_t reach = outputs ? (outputs - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 : 0;
    STD_TORCH_CHECK(outputs <= kMost && reach <= inputs.size(2 + axis), "patch_gram: patches reach to ", reach,
                    " of an axis of ", inputs.size(2 + axis));
  }
  const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
  const ScalarType dtype = inputs.scalar_type();
  const ScalarType result_dtype = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t num_samples = inputs.size(0);
  STD_TORCH_CHECK(num_samples <= 1'000'000'000, "patch_gram: N * N must fit in 64 bits, got N = ", num_samples);
  const Tensor result = torch::stable::new_empty(inputs, {num_samples, num_samples}, result_dtype);
  switch (dtype) {
    case ScalarType::Float:
      (tf32_is_allowed() ? run<Plain<float>, float> : run<CompensatedTf32, float>)(inputs, output_grads, kernel, stride,
                                                                                   dilation, result);
      break;
    case ScalarType::Double:
      run<Float64, double>(inputs, output_grads, kernel, stride, dilation, result);
      break;
    case ScalarType::BFloat16:
      run<Plain<float>, BFloat16>(inputs, output_grads, kernel, stride, dilation, result);
      break;
    case ScalarType::Half:
      run<Plain<float>, Float16>(inputs, output_grads, kernel, stride, dilation, result);
      break;
    default:
      STD_TORCH_CHECK(false, "patch_gram: dtype must be float64, float32, bfloat16 or float16");
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("patch_gram", TORCH_BOX(&patch_gram_cuda));
}

}  // namespace
}  // namespace sgdkern
