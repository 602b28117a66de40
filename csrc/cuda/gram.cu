// The CUDA twin of sgdkern/ops/gram.py: checks, allocates, launches gram_kernel.cuh.

#include "device.cuh"
#include "queue.h"

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

template <class Product>
void run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads,
         const std::vector<bool>& constant_columns, const Tensor& result) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  std::vector<Tensor> kept;  // contiguous copies live until the launches are queued: the allocator orders by stream
  std::vector<Layer<Element>> layers;
  for (std::size_t l = 0; l < inputs.size(); ++l) {
    const Tensor a = kept.emplace_back(rows_contiguous(inputs[l]));
    const Tensor d = kept.emplace_back(rows_contiguous(output_grads[l]));
    layers.push_back({{factor_of<Element>(a), factor_of<Element>(d)}, 2, constant_columns[l]});
  }
  const int32_t device = result.get_device_index();
  const int64_t num_samples = result.size(0), num_layers = layers.size();
  GramSum<Product, Queue> sum(current_queue(device), device_numbers(device), num_samples);
  const int64_t num_parts = std::min(sum.most_parts(), fewest_layers_of_a_launch(num_layers));
  Sum* const gram = static_cast<Sum*>(result.mutable_data_ptr());
  if (num_parts == 1) {
    sum.add(layers, 1, gram);
  } else {
    const Tensor parts = torch::stable::new_empty(result, {num_parts, num_samples, num_samples});
    sum.add(layers, num_parts, static_cast<Sum*>(parts.mutable_data_ptr()));
    sum.finish(static_cast<const Sum*>(parts.const_data_ptr()), num_parts, gram);
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
  const torch::stable::accelerator::DeviceGuard guard(inputs[0].get_device_index());
  const ScalarType dtype = inputs[0].scalar_type();
  const ScalarType result_dtype = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t num_samples = inputs[0].size(0);
  STD_TORCH_CHECK(num_samples <= 1'000'000'000, "gram: N * N must fit in 64 bits, got N = ", num_samples);
  const Tensor result = torch::stable::new_empty(inputs[0], {num_samples, num_samples}, result_dtype);
  switch (dtype) {
    case ScalarType::Float:
      (tf32_is_allowed() ? run<Plain<float>> : run<CompensatedTf32>)(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::Double:
      run<Float64>(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::BFloat16:
      run<Plain<BFloat16>>(inputs, output_grads, constant_columns, result);
      break;
    case ScalarType::Half:
      run<Plain<Float16>>(inputs, output_grads, constant_columns, result);
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
