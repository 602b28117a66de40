// What the CPU operations' host functions share: checks of dense factors, their rows as raw pointers, a switch over dtypes.
#pragma once

#include "gram.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace sgdkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostSamples = 1'000'000'000;  // N * N * 8 bytes stays below 2^63

constexpr auto kTorchThreads = [](int64_t count, const auto& body) { torch::stable::parallel_for(0, count, 1, body); };

inline ScalarType result_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body.operator()<T, Source>() with the types that sums are kept in and that factors come in.
template <class Body>
void with_types(const char* op, ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body.template operator()<float, float>();
    case ScalarType::Double:
      return body.template operator()<double, double>();
    case ScalarType::BFloat16:
      return body.template operator()<float, BFloat16>();
    case ScalarType::Half:
      return body.template operator()<float, Float16>();
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float64, float32, bfloat16 or float16");
  }
}

// Of inputs [N, I_l] and output_grads [N, O_l], a pair a layer; returns N.
inline int64_t check_dense_factors(const char* op, const std::vector<Tensor>& inputs,
                                   const std::vector<Tensor>& output_grads, const std::vector<bool>& constant_columns) {
  STD_TORCH_CHECK(!inputs.empty(), op, ": at least one layer is needed, got none");
  STD_TORCH_CHECK(inputs.size() == output_grads.size() && inputs.size() == constant_columns.size(), op,
                  ": inputs, output_grads and constant_columns must have one entry a layer, got ", inputs.size(), ", ",
                  output_grads.size(), " and ", constant_columns.size());
  const ScalarType dtype = inputs[0].scalar_type();
  STD_TORCH_CHECK(inputs[0].dim() == 2, op, ": factors must be [N, features], got ", inputs[0].dim(), " axes");
  const int64_t num_samples = inputs[0].size(0);
  for (const std::vector<Tensor>* factors : {&inputs, &output_grads}) {
    for (const Tensor& factor : *factors) {
      STD_TORCH_CHECK(factor.is_cpu(), op, ": all factors must be on the CPU");
      STD_TORCH_CHECK(factor.dim() == 2, op, ": factors must be [N, features], got ", factor.dim(), " axes");
      STD_TORCH_CHECK(factor.size(0) == num_samples, op, ": factors must share N, got ", factor.size(0), " and ",
                      num_samples);
      STD_TORCH_CHECK(factor.scalar_type() == dtype, op, ": factors must share one dtype");
    }
  }
  STD_TORCH_CHECK(num_samples <= kMostSamples, op, ": N * N must fit in 64 bits, got N = ", num_samples);
  return num_samples;
}

// Of weights [N, k] in the results' dtype; returns k.
inline int64_t check_weights(const char* op, const Tensor& weights, int64_t num_samples, ScalarType dtype) {
  STD_TORCH_CHECK(weights.is_cpu() && weights.dim() == 2 && weights.size(0) == num_samples, op,
                  ": weights must be [N, k] on the CPU, got ", weights.dim(), " axes for N = ", num_samples);
  STD_TORCH_CHECK(weights.scalar_type() == result_dtype(dtype), op,
                  ": weights must be float64 for float64 factors, else float32");
  return weights.size(1);
}

// The matrix itself, or a copy where its rows do not lie together.
inline Tensor with_contiguous_rows(const Tensor& matrix) {
  return matrix.stride(1) == 1 || matrix.size(1) <= 1 ? matrix : torch::stable::contiguous(matrix);
}

// Dense factors as raw pointers to contiguous rows.
template <class Source>
class DenseFactors {
 public:
  DenseFactors(const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads,
               const std::vector<bool>& constant_columns) {
    for (std::size_t l = 0; l < inputs.size(); ++l) {
      const Tensor a = kept_.emplace_back(with_contiguous_rows(inputs[l]));
      const Tensor d = kept_.emplace_back(with_contiguous_rows(output_grads[l]));
      layers_.push_back({static_cast<const Source*>(a.const_data_ptr()), static_cast<const Source*>(d.const_data_ptr()),
                         a.size(1), d.size(1), a.stride(0), d.stride(0), constant_columns[l]});
    }
  }

  const std::vector<Layer<Source>>& layers() const { return layers_; }

 private:
  std::vector<Tensor> kept_;  // contiguous copies live as long as the pointers
  std::vector<Layer<Source>> layers_;
};

}  // namespace sgdkern
