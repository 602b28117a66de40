// Y [M, b] = A [M, K] times X [K, b] for few columns b: products of a large matrix with a block of vectors.
//
// Work     M * K * b multiply-adds, b rounded up to whole panels of kThin.
// Traffic  A is read once a panel, where it lies, never packed: what torch.mm spends most of its time on here, since no
//          element of A serves more than b products. X is packed once, [K, kThin] a panel, for the second-level cache.
// Tiling   A by rows: as many rows as sums fit in the registers, kThin to a row; an element of A is broadcast against a
//          row of X. A by columns (a transposed view): register blocks of columns against half of X's columns.
//          The last rows that do not fill a block are done together with some before them, which are not written again.
// Numerics sums run over features in order within blocks of kThinFeatures, then over blocks: a result depends neither
//          on the number of threads nor on the run.
#pragma once

#include "gram.h"

namespace sgdkern {

constexpr int kThin = 16;            // columns of X in a panel: what a block of Lanczos vectors has
constexpr int kMostThinRows = 32;   // rows or columns of a register block
constexpr int kThinFeatures = 128;   // a block of A's columns, 16 KiB, stays in the first-level cache
constexpr int kThinAhead = 64;       // elements of a row that are asked for ahead of their use: rows are many streams,
constexpr int kThinRowsAhead = 16;   // and columns lie on a page each, both too much for the hardware's prefetcher

template <class T>
struct ThinKernels {
  void (*rows)(const T* rows, int64_t stride, int64_t features, const T* vectors, T* result);
  void (*one_row)(const T* row, int64_t stride, int64_t features, const T* vectors, T* result);
  void (*columns)(const T* columns, int64_t stride, int64_t features, const T* vectors, T* result);
  int num_rows, num_columns;
};

#define SGDKERN_KERNELS "thin_product_block.inl"
#include "instruction_sets.inl"

// A as the caller has it: one of its strides is 1.
template <class T>
struct ThinMatrix {
  const T* first;
  int64_t rows, features, row_stride, feature_stride;
};

// Fewer rows than a register block has columns are one row each.
template <class T>
bool fits_columns(const ThinMatrix<T>& matrix, InstructionSet set) {
  return matrix.row_stride == 1 && matrix.rows >= kernels_for<ThinKernels<T>>(set).num_columns;
}

// vectors [features, kThin] packed, result [rows, columns] with rows of `stride`; the matrix has contiguous rows, or
// columns where they fit; `parallel` as in gram.h.
template <class T, class Parallel>
void thin_product(const ThinMatrix<T>& matrix, const T* vectors, int64_t columns, InstructionSet set,
                  Parallel&& parallel, T* result, int64_t stride) {
  const ThinKernels<T>& kernels = kernels_for<ThinKernels<T>>(set);
  const bool by_columns = fits_columns(matrix, set) && matrix.feature_stride != 1;
  int64_t block = by_columns ? kernels.num_columns : kernels.num_rows;
  if (matrix.rows < block) block = 1;
  parallel((matrix.rows + block - 1) / block, [&](int64_t begin, int64_t end) {
    alignas(64) T sums[kMostThinRows * kThin];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t wanted = t * block, first = std::min(wanted, matrix.rows - block);
      const T* rows = matrix.first + first * matrix.row_stride;
      if (by_columns) {
        kernels.columns(rows, matrix.feature_stride, matrix.features, vectors, sums);
      } else {
        (block == 1 ? kernels.one_row : kernels.rows)(rows, matrix.row_stride, matrix.features, vectors, sums);
      }
      for (int64_t i = wanted; i < first + block; ++i) {
        std::memcpy(result + i * stride, sums + (i - first) * kThin, columns * sizeof(T));
      }
    }
  });
}

}  // namespace sgdkern
