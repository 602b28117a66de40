// The CPU twin of sgdkern/ops/thin_product.py: checks, allocates, packs the vectors unless they lie as a panel, calls
// thin_product.h.

#include "thin_product.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// matrix [M, K], vectors [K, b] -> [M, b]
template <class T>
void multiply(const Tensor& matrix, const Tensor& vectors, Tensor packed, Tensor result) {
  const InstructionSet set = best_instruction_set();
  ThinMatrix<T> a{static_cast<const T*>(matrix.const_data_ptr()), matrix.size(0), matrix.size(1), matrix.stride(0),
                  matrix.stride(1)};
  Tensor rows = matrix;  // a copy lives as long as the pointer
  if (a.feature_stride != 1 && !fits_columns(a, set)) {
    rows = torch::stable::contiguous(matrix);
    a.first = static_cast<const T*>(rows.const_data_ptr()), a.row_stride = a.features, a.feature_stride = 1;
  }
  const T* x = static_cast<const T*>(vectors.const_data_ptr());
  T* const panel = static_cast<T*>(packed.mutable_data_ptr());
  T* const y = static_cast<T*>(result.mutable_data_ptr());
  const int64_t num_columns = vectors.size(1), step = vectors.stride(0), side = vectors.stride(1);
  for (int64_t column = 0; column < num_columns; column += kThin) {
    const int64_t columns = std::min<int64_t>(kThin, num_columns - column);
    const bool is_panel = step == kThin && side == 1 && columns == kThin;  // what Lanczos' blocks are
    if (!is_panel) {
      for (int64_t k = 0; k < a.features; ++k) {
        for (int64_t c = 0; c < kThin; ++c) panel[k * kThin + c] = c < columns ? x[k * step + (column + c) * side] : T{0};
      }
    }
    thin_product(a, is_panel ? x + column : panel, columns, set, kTorchThreads, y + column, num_columns);
  }
}

Tensor thin_product_cpu(Tensor matrix, Tensor vectors) {
  STD_TORCH_CHECK(matrix.is_cpu() && vectors.is_cpu(), "thin_product: both must be on the CPU");
  STD_TORCH_CHECK(matrix.dim() == 2 && vectors.dim() == 2 && matrix.size(1) == vectors.size(0),
                  "thin_product: the matrix must be [M, K] and the vectors [K, b]");
  const ScalarType dtype = matrix.scalar_type();
  STD_TORCH_CHECK(dtype == vectors.scalar_type() && (dtype == ScalarType::Float || dtype == ScalarType::Double),
                  "thin_product: both must be float64 or float32");
  const Tensor packed = torch::stable::new_empty(matrix, {matrix.size(1), kThin});
  const Tensor result = torch::stable::new_empty(matrix, {matrix.size(0), vectors.size(1)});
  if (dtype == ScalarType::Float) {
    multiply<float>(matrix, vectors, packed, result);
  } else {
    multiply<double>(matrix, vectors, packed, result);
  }
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("thin_product", TORCH_BOX(&thin_product_cpu));
}

}  // namespace
}  // namespace sgdkern
