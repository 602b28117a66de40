// result [N, 1 + k]: the diagonal of K, and K W = G (G^T W) for W [N, k]; K of one linear layer with few outputs.
//
// Work     2 k N I O multiply-adds, I rounded up to whole vectors: features of A lie in lanes, which are seldom few.
// Traffic  A is read twice, where it lies but for its last features and 16-bit numbers, which are widened. V^T = A^T (D W):
//          a block of kBlockRows rows serves all outputs, a chunk of features at a time. Then V^T d_n, some rows and a chunk
//          at a time, is multiplied with a_n and summed while in registers, and ||a_n||^2 with it. Both products are one
//          register block: kSteps broadcast numbers of D times vectors. What the next block of rows reads is asked for
//          meanwhile: else it cost a third more time.
// Numerics V in blocks of kBlockRows samples, each lane by itself; V^T d_n over outputs in order, its product with a_n over
//          every kLanes-th feature in order. Sums over lanes, and ||d_n||^2, in float64. A sum is one thread's: results do
//          not depend on the number of threads.
#pragma once

#include "register_block.h"

namespace sgdkern {

constexpr int64_t kBlockRows = 64;      // of A and of D W at a time: of A 16 KiB a chunk, four float32 vectors at AVX-512
constexpr int64_t kAppliedRows = 48;    // whole steps: D's rows, with a chunk of V, in a first-level cache for 50 outputs
constexpr int64_t kSharedOutputs = 96;  // of a chunk that a thread takes, whole steps: 24 KiB of D W

template <class T, class Source>
struct LinearKernels {
  int64_t lanes, vectors;
  void (*add_sums)(const Layer<Source>& layer, int64_t row, int64_t rows, int64_t at, const T* scaled, int64_t outputs,
                   int64_t begin, int64_t end, T* sums);
  void (*apply)(const Layer<Source>& layer, int64_t row, int64_t rows, const T* sums, int64_t num_columns, T* result);
};

#define SGDKERN_KERNELS "linear_gram_matvec_block.inl"
#include "instruction_sets.inl"

// weights [N, num_columns]; the rest as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool linear_gram_matvec(const Layer<Source>& layer, int64_t num_samples, const T* weights, int64_t num_columns,
                        InstructionSet set, Parallel&& parallel, T* result) {
  const LinearKernels<T, Source>& kernels = kernels_for<LinearKernels<T, Source>>(set);
  const int64_t out = layer.out_features;
  int64_t outputs = 0, width = 0;  // k O; features, the constant one among them, in whole vectors
  if (__builtin_mul_overflow(out, num_columns, &outputs)) return false;
  width = (layer.in_features + layer.constant_column + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  Layout layout;
  const int64_t places[] = {layout.place(num_samples, outputs, sizeof(T)), layout.place(outputs, width, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  T* const scaled = reinterpret_cast<T*>(workspace->memory() + places[0]);  // [N, k O]: D times each column of W
  T* const sums = reinterpret_cast<T*>(workspace->memory() + places[1]);  // V, in chunks of `vectors`: [chunks, k O, lanes]
  parallel((num_samples + kBlockRows - 1) / kBlockRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * kBlockRows; n < std::min(end * kBlockRows, num_samples); ++n) {
      const Source* grads = layer.output_grads + n * layer.output_grads_stride;
      for (int64_t c = 0; c < num_columns; ++c) {
        const T weight = weights[n * num_columns + c];
        for (int64_t o = 0; o < out; ++o) scaled[n * outputs + c * out + o] = widen<T>(grads[o]) * weight;
      }
    }
  });
  std::fill_n(sums, outputs * width, T{0});
  const int64_t chunk = kernels.vectors * kernels.lanes, num_chunks = (width + chunk - 1) / chunk;
  const int64_t shares = (outputs + kSharedOutputs - 1) / kSharedOutputs;
  parallel(num_chunks * shares, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < num_samples; first += kBlockRows) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t share = at % shares * kSharedOutputs;
        kernels.add_sums(layer, first, std::min(kBlockRows, num_samples - first), at / shares * kernels.vectors,
                         scaled + first * outputs, outputs, share, std::min(share + kSharedOutputs, outputs), sums);
      }
    }
  });
  parallel((num_samples + kAppliedRows - 1) / kAppliedRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kAppliedRows; row < std::min(end * kAppliedRows, num_samples); row += kAppliedRows) {
      kernels.apply(layer, row, std::min(kAppliedRows, num_samples - row), sums, num_columns, result);
    }
  });
  Workspace::keep(std::move(workspace));
  return true;
}

}  // namespace sgdkern
