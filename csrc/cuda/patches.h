// What patch_gram.cu and patch_gradients.cu share: checks of a convolution's factors, their places in memory, a switch over
// dtypes.
#pragma once

#include "device.cuh"
#include "patch_gram_launch.h"
#include "queue.h"

namespace sgdkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Source>
PatchLayer<Source> patch_layer(const Tensor& inputs, const Tensor& output_grads, const std::vector<int64_t>& kernel,
                               const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation) {
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
  return layer;
}

inline void check_patches(const char* op, const Tensor& inputs, const Tensor& output_grads,
                          const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(inputs.is_cuda() && output_grads.is_cuda() && inputs.get_device_index() == output_grads.get_device_index(),
                  op, ": both factors must be on one CUDA device");
  STD_TORCH_CHECK(inputs.dim() == 4 && output_grads.dim() == 4, op, ": factors must have 4 axes, got ", inputs.dim(),
                  " and ", output_grads.dim());
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0), op, ": factors must share N, got ", inputs.size(0), " and ",
                  output_grads.size(0));
  STD_TORCH_CHECK(inputs.scalar_type() == output_grads.scalar_type(), op, ": factors must share one dtype");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2, op,
                  ": kernel, stride and dilation must have two entries");
  for (int axis = 0; axis < 2; ++axis) {
    constexpr int64_t kMost = int64_t{1} << 30;  // so that the products below stay in 64 bits
    for (const int64_t value : {kernel[axis], stride[axis], dilation[axis]}) {
      STD_TORCH_CHECK(1 <= value && value <= kMost, op, ": kernel, stride and dilation must be positive");
    }
    const int64_t outputs = output_grads.size(2 + axis);
    const int64_t reach = outputs ? (outputs - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 : 0;
    STD_TORCH_CHECK(outputs <= kMost && reach <= inputs.size(2 + axis), op, ": patches reach to ", reach,
                    " of an axis of ", inputs.size(2 + axis));
  }
  STD_TORCH_CHECK(inputs.size(0) <= 1'000'000'000, op, ": N * N must fit in 64 bits, got N = ", inputs.size(0));
}

inline ScalarType result_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body.operator()<Product, Source>() with how numbers are multiplied and how they come.
template <class Body>
void with_products(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return tf32_is_allowed() ? body.template operator()<Plain<float>, float>()
                               : body.template operator()<CompensatedTf32, float>();
    case ScalarType::Double:
      return body.template operator()<Float64, double>();
    case ScalarType::BFloat16:
      return body.template operator()<Plain<float>, BFloat16>();
    case ScalarType::Half:
      return body.template operator()<Plain<float>, Float16>();
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float64, float32, bfloat16 or float16");
  }
}

}  // namespace sgdkern
