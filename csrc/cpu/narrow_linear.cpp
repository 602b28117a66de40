// The CPU twin of sgdkern/ops/narrow_linear.py: checks, allocates, calls narrow_linear.h.

#include "narrow_linear.h"

#include "tensors.h"

#include <optional>

namespace sgdkern {
namespace {

template <class T>
Rows<T> rows_of(const Tensor& matrix) {
  return {static_cast<const T*>(matrix.const_data_ptr()), matrix.size(0), matrix.stride(0)};
}

// inputs [N, I], weight [O, I], bias [O] -> [N, O]
Tensor narrow_linear_cpu(Tensor inputs, Tensor weight, std::optional<Tensor> bias) {
  STD_TORCH_CHECK(inputs.is_cpu() && weight.is_cpu(), "narrow_linear: all must be on the CPU");
  STD_TORCH_CHECK(inputs.dim() == 2 && weight.dim() == 2 && inputs.size(1) == weight.size(1),
                  "narrow_linear: inputs must be [N, I] and the weight [O, I]");
  const ScalarType dtype = inputs.scalar_type();
  STD_TORCH_CHECK(dtype == weight.scalar_type() && (dtype == ScalarType::Float || dtype == ScalarType::Double),
                  "narrow_linear: all must be float64 or float32");
  std::optional<Tensor> added;
  if (bias) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == dtype,
                    "narrow_linear: the bias must be [O], on the CPU, of the same dtype");
    added = torch::stable::contiguous(*bias);
  }
  const Tensor x = with_contiguous_rows(inputs), w = with_contiguous_rows(weight);
  const Tensor result = torch::stable::new_empty(inputs, {inputs.size(0), weight.size(0)});
  const auto multiply = [&]<class T>() {
    narrow_linear<T>(rows_of<T>(x), rows_of<T>(w), x.size(1), added ? static_cast<const T*>(added->const_data_ptr()) : nullptr,
                     best_instruction_set(), kTorchThreads, static_cast<T*>(result.mutable_data_ptr()));
  };
  dtype == ScalarType::Float ? multiply.operator()<float>() : multiply.operator()<double>();
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("narrow_linear", TORCH_BOX(&narrow_linear_cpu));
}

}  // namespace
}  // namespace sgdkern
