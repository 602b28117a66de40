// Y [N, O] = X [N, I] times W [O, I] transposed, plus b [O]: a linear layer with few outputs.
//
// Work     N * O * I multiply-adds, N and O rounded up to multiples of kSide.
// Traffic  X and W are read where they lie, nothing is packed: what a general product spends most of its time on here, since
//          no element of X serves more than O products. kNarrowRows rows of X stay in a second-level cache while all
//          outputs pass them, and those that follow are asked for meanwhile.
// Tiling   features lie in the lanes of vectors: kSide rows of X against kSide of W are inner products in registers, as in
//          minibatch_norms.h. No lane is empty but in a row's last vector, however many outputs there are.
// Numerics sums over every kLanes-th feature of a block of kNarrowFeatures in order, then over lanes, then over blocks; the
//          bias last. A row's outputs depend neither on the number of rows nor on that of threads.
#pragma once

#include "register_block.h"

namespace sgdkern {

constexpr int64_t kNarrowRows = 30;        // whole sides: with 784 float32 features 92 KiB
constexpr int64_t kNarrowFeatures = 1024;  // kSide rows of them stay in a first-level cache

// Rows as the caller has them, contiguous within a row.
template <class T>
struct Rows {
  const T* first;
  int64_t count, stride;
};

template <class T>
struct NarrowKernels {
  void (*outputs)(const Rows<T>& inputs, int64_t following, const Rows<T>& weight, int64_t features, const T* bias, T* result);
};

#define SGDKERN_KERNELS "narrow_linear_block.inl"
#include "instruction_sets.inl"

// bias [O] or none, result [N, O]; `parallel` as in gram.h.
template <class T, class Parallel>
void narrow_linear(const Rows<T>& inputs, const Rows<T>& weight, int64_t features, const T* bias, InstructionSet set,
                   Parallel&& parallel, T* result) {
  const NarrowKernels<T>& kernels = kernels_for<NarrowKernels<T>>(set);
  parallel((inputs.count + kNarrowRows - 1) / kNarrowRows, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kNarrowRows, inputs.count);
    for (int64_t row = begin * kNarrowRows; row < last; row += kNarrowRows) {
      const int64_t rows = std::min(kNarrowRows, last - row);
      kernels.outputs({inputs.first + row * inputs.stride, rows, inputs.stride}, std::min(kNarrowRows, last - row - rows),
                      weight, features, bias, result + row * weight.count);
    }
  });
}

}  // namespace sgdkern
