// result [M]: ||sum over n in mu of g_n||^2 of minibatches mu of B samples = sum over pairs i, j in mu of
// sum over layers (a_i a_j + c) (d_i d_j): the blocks of the Gram matrix (gram.h) that lie within a minibatch, summed.
//
// Work     M * B (B + 1) / 2 * sum(I + O) multiply-adds; where the narrower factor has at most B / 2 features, the sum of
//          gradients itself, M * B * I * O.
// Traffic  rows are read where they lie, 16-bit ones and last features gathered: a row serves in N / (M B) minibatches on
//          average, which is about one. With each block some rows of the next minibatch are asked for: gathered from the
//          last-level cache they cost 40 % more time.
// Tiling   inner products of the narrower factor are kSide x kSide in registers, each a vector of partial sums along the
//          features, summed over lanes: s_ij. The wider factor has no sums over lanes: with y_i = sum_j s_ij a_j, a chunk of
//          features at a time, the sum over pairs is that of y_i a_i, in which a row is met B / kSteps times, not B / kSide.
// Numerics s_ij over every kLanes-th feature in order, y_i over members; y_i a_i over members and at most four vectors, then
//          over chunks, minibatch's parts of kMembers and layers in float64; a sum of gradients over members in order. A
//          minibatch is one thread's: results do not depend on the number of threads.
#pragma once

#include "register_block.h"

namespace sgdkern {

template <class T, class Source>
struct MinibatchKernels {
  double (*squared_norm)(const Layer<Source>* layers, int64_t num_layers, const int64_t* members, const int64_t* next,
                         int64_t size);
};

#define SGDKERN_KERNELS "minibatch_norms_block.inl"
#include "instruction_sets.inl"

// members [num_minibatches, size], each in [0, N); `parallel` as in gram.h.
template <class T, class Source, class Parallel>
void minibatch_norms(const std::vector<Layer<Source>>& layers, const int64_t* members, int64_t num_minibatches,
                     int64_t size, InstructionSet set, Parallel&& parallel, T* result) {
  const MinibatchKernels<T, Source>& kernels = kernels_for<MinibatchKernels<T, Source>>(set);
  parallel(num_minibatches, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t* own = members + m * size;
      result[m] = static_cast<T>(kernels.squared_norm(layers.data(), static_cast<int64_t>(layers.size()), own,
                                                      m + 1 < end ? own + size : nullptr, size));
    }
  });
}

}  // namespace sgdkern
