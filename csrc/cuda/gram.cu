// The CUDA twin of sgdkern/ops/gram.py: checks, allocates, launches gram_kernel.cuh.

#include "device.cuh"
#include "gram_kernel.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace sgdkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_factor(const Tensor& factor, const Tensor& first) {
  STD_TORCH_CHECK(factor.is_cuda() && factor.get_device_index() == first.get_device_index(),
                  "gram: all factors must be on one CUDA device");
  STD_TORCH_CHECK(factor.dim() == 2, "gram: factors must be [N, features], got ", factor.dim(), " axes");
  STD_TORCH_CHECK(factor.size(0) == first.size(0), "gram: factors must share N, got ", factor.size(0), " and ",
                  first.size(0));
  STD_TORCH_CHECK(factor.scalar_type() == first.scalar_type(), "gram: factors must share one dtype");
}

Tensor rows_contiguous(const Tensor& factor) {
  return factor.stride(1) == 1 || factor.size(1) <= 1 ? factor : torch::stable::contiguous(factor);
}

template <class Source>
Factor<Source> factor_of(const Tensor& factor) {
  return {static_cast<const Source*>(factor.const_data_ptr()), factor.size(1), factor.stride(0)};
}

template <class T, class Source>
void launch(const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads,
            const std::vector<bool>& constant_columns, cudaStream_t stream, const Tensor& result) {
  const int64_t num_samples = result.size(0), tiles = (num_samples + kTile - 1) / kTile;
  const int64_t blocks = tiles * (tiles + 1) / 2;
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "gram: N must be below 4 million, got ", num_samples);
  std::vector<Tensor> kept;  // contiguous copies live until the launches are queued: the allocator orders by stream
  for (std::size_t begin = 0; begin < inputs.size() && blocks > 0; begin += kMostLayers) {
    Layers<Source> layers;
    layers.count = static_cast<int>(std::min<std::size_t>(kMostLayers, inputs.size() - begin));
    for (int l = 0; l < layers.count; ++l) {
      const Tensor a = kept.emplace_back(rows_contiguous(inputs[begin + l]));
      const Tensor d = kept.emplace_back(rows_contiguous(output_grads[begin + l]));
      layers.layer[l] = {factor_of<Source>(a), factor_of<Source>(d), constant_columns[begin + l]};
    }
    gram_kernel<T, Source><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        layers, num_samples, begin == 0, static_cast<T*>(result.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

// inputs [N, I_l], output_grads [N, O_l] -> [N, N]
Tensor gram_cuda(std::vector<Tensor> inputs, std::vector<Tensor> output_grads, std::vector<bool> constant_columns) {
  STD_TORCH_CHECK(!inputs.empty(), "gram: at least one layer is needed, got none");
  STD_TORCH_CHECK(inputs.size() == output_grads.size() && inputs.size() == constant_columns.size(),
                  "gram: inputs, output_grads and constant_columns must have one entry a layer, got ", inputs.size(), ", ",
                  output_grads.size(), " and ", constant_columns.size());
  STD_TORCH_CHECK(inputs[0].dim() == 2, "gram: factors must be [N, features], got ", inputs[0].dim(), " axes");
  for (const std::vector<Tensor>* factors : {&inputs, &output_grads}) {
    for (const Tensor& factor : *factors) check_factor(factor, inputs[0]);
  }
  const torch::stable::accelerator::DeviceIndex device = inputs[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);

  const ScalarType dtype = inputs[0].scalar_type();
  const ScalarType result_dtype = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t num_samples = inputs[0].size(0);
  STD_TORCH_CHECK(num_samples <= 1'000'000'000, "gram: N * N must fit in 64 bits, got N = ", num_samples);
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, num_samples}, result_dtype);
  switch (dtype) {
    case ScalarType::Float:
      launch<float, float>(inputs, output_grads, constant_columns, queue, result);
      break;
    case ScalarType::Double:
      launch<double, double>(inputs, output_grads, constant_columns, queue, result);
      break;
    case ScalarType::BFloat16:
      launch<float, __nv_bfloat16>(inputs, output_grads, constant_columns, queue, result);
      break;
    case ScalarType::Half:
      launch<float, __half>(inputs, output_grads, constant_columns, queue, result);
      break;
    default:
      STD_TORCH_CHECK(false, "gram: dtype must be float64, float32, bfloat16 or float16");
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CUDA, library) {
  library.impl("gram", TORCH_BOX(&gram_cuda));
}

}  // namespace
}  // namespace sgdkern
