// The CPU twin of sgdkern/ops/gram.py: checks, allocates, calls gram.h.

#include "gram.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>

namespace sgdkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_factor(const Tensor& factor, int64_t num_samples, ScalarType dtype) {
  STD_TORCH_CHECK(factor.is_cpu(), "gram: all factors must be on the CPU");
  STD_TORCH_CHECK(factor.dim() == 2, "gram: factors must be [N, features], got ", factor.dim(), " axes");
  STD_TORCH_CHECK(factor.size(0) == num_samples, "gram: factors must share N, got ", factor.size(0), " and ", num_samples);
  STD_TORCH_CHECK(factor.scalar_type() == dtype, "gram: factors must share one dtype");
}

Tensor rows_contiguous(const Tensor& factor) {
  return factor.stride(1) == 1 || factor.size(1) <= 1 ? factor : torch::stable::contiguous(factor);
}

template <class T, class Source>
void run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads,
         const std::vector<bool>& constant_columns, const Tensor& result) {
  std::vector<Tensor> kept;  // contiguous copies live until the end
  std::vector<Layer<Source>> layers;
  for (std::size_t l = 0; l < inputs.size(); ++l) {
    const Tensor a = kept.emplace_back(rows_contiguous(inputs[l]));
    const Tensor d = kept.emplace_back(rows_contiguous(output_grads[l]));
    layers.push_back({static_cast<const Source*>(a.const_data_ptr()), static_cast<const Source*>(d.const_data_ptr()),
                      a.size(1), d.size(1), a.stride(0), d.stride(0), constant_columns[l]});
  }
  const auto parallel = [](int64_t count, const auto& body) { torch::stable::parallel_for(0, count, 1, body); };
  const bool done = gram<T, Source>(layers, result.size(0), best_instruction_set(), parallel,
                                    static_cast<T*>(result.mutable_data_ptr()));
  STD_TORCH_CHECK(done, "gram: not enough memory for a packed copy of the factors. Use fewer samples.");
}

// inputs [N, I_l], output_grads [N, O_l] -> [N, N]
Tensor gram_cpu(std::vector<Tensor> inputs, std::vector<Tensor> output_grads, std::vector<bool> constant_columns) {
  STD_TORCH_CHECK(!inputs.empty(), "gram: at least one layer is needed, got none");
  STD_TORCH_CHECK(inputs.size() == output_grads.size() && inputs.size() == constant_columns.size(),
                  "gram: inputs, output_grads and constant_columns must have one entry a layer, got ", inputs.size(), ", ",
                  output_grads.size(), " and ", constant_columns.size());
  const ScalarType dtype = inputs[0].scalar_type();
  STD_TORCH_CHECK(inputs[0].dim() == 2, "gram: factors must be [N, features], got ", inputs[0].dim(), " axes");
  const int64_t num_samples = inputs[0].size(0);
  for (const std::vector<Tensor>* factors : {&inputs, &output_grads}) {
    for (const Tensor& factor : *factors) check_factor(factor, num_samples, dtype);
  }
  constexpr int64_t kMostSamples = 1'000'000'000;  // N * N * 8 bytes stays below 2^63
  STD_TORCH_CHECK(num_samples <= kMostSamples, "gram: N * N must fit in 64 bits, got N = ", num_samples);
  const ScalarType result_dtype = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, num_samples}, result_dtype);
  switch (dtype) {
    case ScalarType::Float:
      run<float, float>(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::Double:
      run<double, double>(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::BFloat16:
      run<float, BFloat16>(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::Half:
      run<float, Float16>(inputs, output_grads, constant_columns, result);
      break;
    default:
      STD_TORCH_CHECK(false, "gram: dtype must be float64, float32, bfloat16 or float16");
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("gram", TORCH_BOX(&gram_cpu));
}

}  // namespace
}  // namespace sgdkern
