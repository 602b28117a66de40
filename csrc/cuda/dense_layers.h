// What the CUDA twins on layers that are used once a sample share: the checks of their factors, and the layers.
#pragma once

#include "queue.h"

namespace sgdkern {

inline void check_layers(const char* op, const std::vector<torch::stable::Tensor>& inputs,
                         const std::vector<torch::stable::Tensor>& output_grads, const std::vector<bool>& constant_columns) {
  STD_TORCH_CHECK(!inputs.empty(), op, ": at least one layer is needed, got none");
  STD_TORCH_CHECK(inputs.size() == output_grads.size() && inputs.size() == constant_columns.size(), op,
                  ": inputs, output_grads and constant_columns must have one entry a layer, got ", inputs.size(), ", ",
                  output_grads.size(), " and ", constant_columns.size());
  const torch::stable::Tensor& first = inputs[0];
  for (const auto* factors : {&inputs, &output_grads}) {
    for (const torch::stable::Tensor& factor : *factors) {
      STD_TORCH_CHECK(factor.is_cuda() && factor.get_device_index() == first.get_device_index(), op,
                      ": all factors must be on one CUDA device");
      STD_TORCH_CHECK(factor.dim() == 2, op, ": factors must be [N, features], got ", factor.dim(), " axes");
      STD_TORCH_CHECK(factor.size(0) == first.size(0), op, ": factors must share N, got ", factor.size(0), " and ",
                      first.size(0));
      STD_TORCH_CHECK(factor.scalar_type() == first.scalar_type(), op, ": factors must share one dtype");
    }
  }
}

// The layers; contiguous copies live as long as this, which is to be until the launches are queued.
template <class Element>
class DenseLayers {
 public:
  DenseLayers(const std::vector<torch::stable::Tensor>& inputs, const std::vector<torch::stable::Tensor>& output_grads,
              const std::vector<bool>& constant_columns) {
    for (std::size_t l = 0; l < inputs.size(); ++l) {
      const torch::stable::Tensor a = kept_.emplace_back(rows_contiguous(inputs[l]));
      const torch::stable::Tensor d = kept_.emplace_back(rows_contiguous(output_grads[l]));
      layers_.push_back({{factor_of<Element>(a), factor_of<Element>(d)}, 2, constant_columns[l]});
    }
  }

  const std::vector<Layer<Element>>& layers() const { return layers_; }

 private:
  std::vector<torch::stable::Tensor> kept_;
  std::vector<Layer<Element>> layers_;
};

inline torch::headeronly::ScalarType result_dtype(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace sgdkern
