// What the CUDA twins of matvec and rmatvec share: checks, operands, memory, the choice of arithmetic.
#pragma once

#include "matvec_launch.h"
#include "queue.h"

#include <initializer_list>

namespace sgdkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_linear(const char* op, const Tensor& inputs, const Tensor& output_grads, const Tensor& other, int64_t dim) {
  STD_TORCH_CHECK(inputs.dim() == 2 && output_grads.dim() == 2 && other.dim() == dim, op,
                  ": inputs, output_grads and the third argument must have 2, 2 and ", dim, " axes");
  STD_TORCH_CHECK(inputs.size(0) == output_grads.size(0), op, ": inputs and output_grads must share M, got ",
                  inputs.size(0), " and ", output_grads.size(0));
  for (const Tensor* tensor : {&inputs, &output_grads, &other}) {
    STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == inputs.get_device_index(), op,
                    ": all arguments must be on one CUDA device");
    STD_TORCH_CHECK(tensor->scalar_type() == inputs.scalar_type(), op, ": all arguments must share one dtype");
  }
}

// Memory of one call; it must live until the launches are queued: the allocator orders by stream.
template <class Element>
struct Scratch {
  Tensor like;
  mutable std::vector<Tensor> kept;

  Element* operator()(int64_t count) const {
    return static_cast<Element*>(kept.emplace_back(torch::stable::new_empty(like, {count})).mutable_data_ptr());
  }
};

}  // namespace sgdkern

// run<Product>(arguments...) with the product that the first tensor's dtype, and the user's choice of TF32, ask for.
#define SGDKERN_RUN_IN_ITS_ARITHMETIC(op, tensor, ...)                                                        \
  switch (tensor.scalar_type()) {                                                                             \
    case ScalarType::Float:                                                                                   \
      (tf32_is_allowed() ? run<Plain<float>> : run<CompensatedTf32>)(tensor, __VA_ARGS__);                    \
      break;                                                                                                  \
    case ScalarType::Double:                                                                                  \
      run<Float64>(tensor, __VA_ARGS__);                                                                      \
      break;                                                                                                  \
    default:                                                                                                  \
      STD_TORCH_CHECK(false, op, ": dtype must be float64 or float32");                                       \
  }
