// How the CUDA twins reach the GPU: its numbers, PyTorch's current stream, and PyTorch's choice of float32 arithmetic.
#pragma once

#include "gram_launch.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>

extern "C" int cublasGetMathMode(void* handle, int* mode);  // of the library that PyTorch's is linked to

namespace sgdkern {

// Launches on a stream; a launch that the device refuses is an error at once.
struct Queue {
  cudaStream_t stream;

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), const Shape& shape, const Arguments&... arguments) const {
    STD_TORCH_CHECK(shape.blocks <= std::numeric_limits<int32_t>::max(), "too many blocks: ", shape.blocks,
                    ". Use fewer samples.");
    STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shape.shared_bytes)));
    kernel<<<static_cast<unsigned>(shape.blocks), shape.threads, shape.shared_bytes, stream>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

inline Queue current_queue(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return {static_cast<cudaStream_t>(stream)};
}

inline Device device_numbers(int32_t device) {
  const auto number = [&](cudaDeviceAttr attribute) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return int64_t{value};
  };
  return {number(cudaDevAttrMultiProcessorCount), number(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          number(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

// A tensor [M, features] whose rows are contiguous.
inline torch::stable::Tensor rows_contiguous(const torch::stable::Tensor& tensor) {
  return tensor.stride(1) == 1 || tensor.size(1) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

template <class Element>
Factor<Element> factor_of(const torch::stable::Tensor& tensor) {
  const Element* data = static_cast<const Element*>(tensor.const_data_ptr());
  return {data, tensor.size(1), tensor.stride(0), alignment_of(data, tensor.stride(0))};
}

// Whether the user allowed TF32 (torch.set_float32_matmul_precision("high"), say): as PyTorch's own products do, by the
// mode in which it hands out cuBLAS's handle.
inline bool tf32_is_allowed() {
  constexpr int kTf32 = 3;  // CUBLAS_TF32_TENSOR_OP_MATH
  void* handle = nullptr;
  int mode = 0;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  STD_TORCH_CHECK(cublasGetMathMode(handle, &mode) == 0, "cuBLAS does not tell its mode");
  return mode == kTf32;
}

// Calls body<Product>() with the product for operands of a dtype, which must be float64 or float32.
template <class Body>
void with_wide_product(const char* op, torch::headeronly::ScalarType dtype, const Body& body) {
  if (dtype == torch::headeronly::ScalarType::Double) {
    body.template operator()<Float64>();
  } else {
    STD_TORCH_CHECK(dtype == torch::headeronly::ScalarType::Float, op, ": this dtype is not supported");
    tf32_is_allowed() ? body.template operator()<Plain<float>>() : body.template operator()<CompensatedTf32>();
  }
}

// The same, bfloat16 and float16 among them.
template <class Body>
void with_product(const char* op, torch::headeronly::ScalarType dtype, const Body& body) {
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    body.template operator()<Plain<BFloat16>>();
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    body.template operator()<Plain<Float16>>();
  } else {
    with_wide_product(op, dtype, body);
  }
}

// Memory of one call; it must live until the launches are queued: the allocator orders by stream.
template <class Sum>
class Scratch {
 public:
  explicit Scratch(const torch::stable::Tensor& like) : like_(like) {}

  Sum* operator()(int64_t count) const {
    return static_cast<Sum*>(kept_.emplace_back(torch::stable::new_empty(like_, {count})).mutable_data_ptr());
  }

 private:
  torch::stable::Tensor like_;
  mutable std::vector<torch::stable::Tensor> kept_;
};

}  // namespace sgdkern
