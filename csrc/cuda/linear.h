// What the CUDA twins of matvec and rmatvec share: the checks of their arguments.
#pragma once

#include "matvec_launch.h"
#include "queue.h"

namespace sgdkern {

inline void check_linear(const char* op, const torch::stable::Tensor& inputs, const torch::stable::Tensor& output_grads,
                         const torch::stable::Tensor& other, int64_t dim) {
  STD_TORCH_CHECK(inputs.dim() == 2 && output_grads.dim() == 2 && other.dim() == dim, op,
                  ": inputs, output_grads and the third argument must have 2, 2 and ", dim, " axes");
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0), op, ": inputs and output_grads must share M, got ",
                  inputs.size(0), " and ", output_grads.size(0));
  for (const torch::stable::Tensor* tensor : {&inputs, &output_grads, &other}) {
    STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == inputs.get_device_index(), op,
                    ": all arguments must be on one CUDA device");
    STD_TORCH_CHECK(tensor->scalar_type() == inputs.scalar_type(), op, ": all arguments must share one dtype");
  }
}

}  // namespace sgdkern
