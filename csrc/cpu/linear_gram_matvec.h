// result [N, 1 + k]: the diagonal of K, and K W = G (G^T W) for W [N, k]; K of one linear layer with few outputs.
//
// Work     2 k N I O multiply-adds, k O rounded up to whole vectors: columns of W lie beside each other in a vector.
// Traffic  A is read twice, and nothing of it is packed: kBlockRows rows of it serve all of (D W)^T, then kSteps rows all of
//          V = G^T W. Both products are one register block, kSteps broadcast numbers of A times vectors of the other factor.
//          A V^T is multiplied with D and summed while in registers.
// Numerics V in blocks of kBlockRows samples, each lane by itself; A V^T over inputs in order. Sums over outputs, and norms,
//          in float64. A sum is one thread's: results do not depend on the number of threads.
#pragma once

#include "gram.h"

namespace sgdkern {

constexpr int64_t kBlockRows = 64;   // of D W, 16 KiB of four float32 vectors at AVX-512
constexpr int64_t kRowsAtOnce = 96;  // rows that a thread takes, whole steps

template <class T, class Source>
struct LinearKernels {
  int64_t lanes, steps;
  void (*add_sums)(const Source* inputs, int64_t stride, int64_t rows, int64_t first, int64_t last, const T* scaled,
                   int64_t width, T* sums);
  void (*apply)(const Layer<Source>& layer, int64_t first, int64_t last, const T* sums, int64_t width, int64_t num_columns,
                T* result);
};

#define SGDKERN_KERNELS "linear_gram_matvec_block.inl"
#include "instruction_sets.inl"

template <class T, class Source>
const LinearKernels<T, Source>& linear_kernels_for(InstructionSet set) {
#ifdef __x86_64__
  if (set == InstructionSet::kAvx512) return avx512::kLinearKernels<T, Source>;
  if (set == InstructionSet::kAvx2) return avx2::kLinearKernels<T, Source>;
#endif
  return baseline::kLinearKernels<T, Source>;
}

// weights [N, num_columns]; the rest as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool linear_gram_matvec(const Layer<Source>& layer, int64_t num_samples, const T* weights, int64_t num_columns,
                        InstructionSet set, Parallel&& parallel, T* result) {
  const LinearKernels<T, Source>& kernels = linear_kernels_for<T, Source>(set);
  const int64_t in = layer.in_features, out = layer.out_features;
  int64_t width = 0;  // of a row [k O], and of the bias's sums behind those of the inputs
  if (__builtin_mul_overflow(out, num_columns, &width) || width > (int64_t{1} << 60)) return false;
  width = (width + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  Layout layout;
  const int64_t places[] = {layout.place(num_samples, width, sizeof(T)), layout.place(in + 1, width, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  T* const scaled = reinterpret_cast<T*>(workspace->memory() + places[0]);  // [N, width]: D times each column of W
  T* const sums = reinterpret_cast<T*>(workspace->memory() + places[1]);    // [I + 1, width]: V, transposed
  parallel((num_samples + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * kRowsAtOnce; n < std::min(end * kRowsAtOnce, num_samples); ++n) {
      const Source* grads = layer.output_grads + n * layer.output_grads_stride;
      T* row = scaled + n * width;
      for (int64_t c = 0; c < num_columns; ++c) {
        const T weight = weights[n * num_columns + c];
        for (int64_t o = 0; o < out; ++o) *row++ = widen<T>(grads[o]) * weight;
      }
      std::fill(row, scaled + (n + 1) * width, T{0});
    }
  });
  std::fill_n(sums, (in + 1) * width, T{0});
  parallel((in + kernels.steps - 1) / kernels.steps, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < num_samples; n += kBlockRows) {
      kernels.add_sums(layer.inputs + n * layer.inputs_stride, layer.inputs_stride, std::min(kBlockRows, num_samples - n),
                       begin * kernels.steps, std::min(end * kernels.steps, in), scaled + n * width, width, sums);
    }
  });
  if (layer.constant_column) {
    for (int64_t first = 0; first < num_samples; first += kBlockRows) {
      for (int64_t i = 0; i < width; ++i) {
        T sum = 0;
        for (int64_t n = first; n < std::min(first + kBlockRows, num_samples); ++n) sum += scaled[n * width + i];
        sums[in * width + i] += sum;
      }
    }
  }
  parallel((num_samples + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t begin, int64_t end) {
    kernels.apply(layer, begin * kRowsAtOnce, std::min(end * kRowsAtOnce, num_samples), sums, width, num_columns, result);
  });
  Workspace::keep(std::move(workspace));
  return true;
}

}  // namespace sgdkern
