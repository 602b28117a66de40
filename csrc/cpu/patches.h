// What patch_gram.cpp and patch_gradients.cpp share: checks of a convolution's factors, their places in memory.
#pragma once

#include "packed_patches.h"
#include "tensors.h"

namespace sgdkern {

// Whether each sample [C, H, W] lies densely, channels first or last; the stride of an axis of one means nothing.
inline bool samples_are_dense(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const auto has = [&](int axis, int64_t stride) { return t.size(axis) == 1 || t.stride(axis) == stride; };
  const bool first = has(3, 1) && has(2, w) && has(1, h * w);
  const bool last = has(1, 1) && has(3, c) && has(2, c * w);
  return first || last;
}

inline Tensor dense(const Tensor& t) {
  if (samples_are_dense(t)) return t;
  const std::vector<int64_t> sizes{t.size(0), t.size(1), t.size(2), t.size(3)};
  return t.numel() ? torch::stable::contiguous(t)      // which to torch a tensor without numbers always is,
                   : torch::stable::new_empty(t, sizes);  // whatever its strides
}

// Both factors dense by sample; the pointers live as long as they do.
template <class Source>
PatchLayer<Source> patch_layer(const Tensor& inputs, const Tensor& output_grads, const std::vector<int64_t>& kernel,
                               const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation) {
  PatchLayer<Source> layer;
  layer.inputs = static_cast<const Source*>(inputs.const_data_ptr());
  layer.output_grads = static_cast<const Source*>(output_grads.const_data_ptr());
  layer.input_size = inputs.size(1) * inputs.size(2) * inputs.size(3);
  layer.output_size = output_grads.size(1) * output_grads.size(2) * output_grads.size(3);
  layer.inputs_stride = inputs.stride(0);
  layer.output_grads_stride = output_grads.stride(0);
  layer.num_outputs = output_grads.size(1);
  layer.output_stride = output_grads.stride(1);
  for (int64_t c = 0; c < inputs.size(1); ++c) {
    for (int64_t i = 0; i < kernel[0]; ++i) {
      for (int64_t j = 0; j < kernel[1]; ++j) {
        layer.taps.push_back(c * inputs.stride(1) + i * dilation[0] * inputs.stride(2) + j * dilation[1] * inputs.stride(3));
      }
    }
  }
  for (int64_t i = 0; i < output_grads.size(2); ++i) {
    for (int64_t j = 0; j < output_grads.size(3); ++j) {
      layer.input_positions.push_back(i * stride[0] * inputs.stride(2) + j * stride[1] * inputs.stride(3));
      layer.output_positions.push_back(i * output_grads.stride(2) + j * output_grads.stride(3));
    }
  }
  return layer;
}

inline void check_patches(const char* op, const Tensor& inputs, const Tensor& output_grads,
                          const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(inputs.is_cpu() && output_grads.is_cpu(), op, ": both factors must be on the CPU");
  STD_TORCH_CHECK(inputs.dim() == 4 && output_grads.dim() == 4, op, ": factors must have 4 axes, got ",
                  inputs.dim(), " and ", output_grads.dim());
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0), op, ": factors must share N, got ", inputs.size(0),
                  " and ", output_grads.size(0));
  STD_TORCH_CHECK(inputs.scalar_type() == output_grads.scalar_type(), op, ": factors must share one dtype");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && dilation.size() == 2,
                  op, ": kernel, stride and dilation must have two entries");
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
  STD_TORCH_CHECK(inputs.size(0) <= kMostSamples, op, ": N * N must fit in 64 bits, got N = ", inputs.size(0));
}

}  // namespace sgdkern
