// result [N, 1 + k]: the diagonal of K, and K W for W [N, k]; K = G G^T of a layer whose weight is used at several
// positions, as in packed_patches.h. K W = G (G^T W) is a sum over columns of G, so that each column is formed once.
//
// Work     N * T * O * taps multiply-adds for the gradients, (1 + 2 k) * N * O * taps with them.
// Traffic  the factors are read and packed once. Some gradients of all samples are formed at a time, in the packed layout
//          of packed_patches.h, about kHeldBytes of them: their squares are summed, G^T W of these columns is taken, G applied
//          to it, and they are overwritten. No gradient is ever stored, nor is K.
// Threads  columns are dealt out to kProductParts parts, whose sums are added in order at the end.
// Numerics gradients as in packed_patches.h. Squares and products with G in float64 after at most kSummedFeatures columns;
//          G^T W lane by lane over the panels, then over lanes. Results do not depend on the number of threads.
#pragma once

#include "minibatch_norms.h"
#include "packed_patches.h"

namespace sgdkern {

constexpr int64_t kHeldBytes = 384 << 10;     // gradients held at a time: with the factors in use, a second-level cache
constexpr int64_t kHeldOutputs = 16;          // of so many outputs at least, and
constexpr int64_t kHeldTaps = 12;             // of so many taps, whatever the number of samples
constexpr int64_t kSummedFeatures = 128;
constexpr int64_t kProductParts = 8;

template <class T>
struct PatchMatvecKernels {
  int64_t lanes;
  void (*add_panel)(const T* gradients, int64_t features, const T* weights, int64_t stride, int64_t num_columns, bool begins,
                    T* sums, double* norms);
  void (*sum_features)(const T* sums, int64_t features, T* vector);
  void (*apply_panel)(const T* gradients, int64_t features, const T* vectors, int64_t vectors_stride, int64_t num_columns,
                      double* products, int64_t stride);
};

#define SGDKERN_KERNELS "patch_gram_matvec_panel.inl"
#include "instruction_sets.inl"

// So many outputs and taps, in whole register blocks, that the gradients of all samples fit kHeldBytes.
inline PatchChunk held_chunk(int64_t num_outputs, int64_t num_taps, int64_t bytes_per_feature) {
  const int64_t features = kHeldBytes / std::max<int64_t>(1, bytes_per_feature);
  const int64_t taps = std::min(num_taps, std::clamp(features / kHeldOutputs / kHeldTaps * kHeldTaps, kHeldTaps, kChunkTaps));
  const int64_t outputs = std::max(features / std::max<int64_t>(1, taps) / 8 * 8, kHeldOutputs);
  return {std::min(num_outputs, outputs), taps};
}

// weights [N, num_columns]; the rest as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool patch_gram_matvec(const PatchLayer<Source>& layer, int64_t num_samples, const T* weights, int64_t num_columns,
                       InstructionSet set, Parallel&& parallel, T* result) {
  const PatchMatvecKernels<T>& kernels = kernels_for<PatchMatvecKernels<T>>(set);
  const int64_t panel = kernels_for<Kernels<T, Source>>(set).panel, num_panels = (num_samples + panel - 1) / panel;
  const int64_t padded = num_panels * panel, num_taps = layer.taps.size(), num_sums = 1 + num_columns;
  const PatchChunks chunks{held_chunk(layer.num_outputs, num_taps, padded * sizeof(T)), layer.num_outputs, num_taps};
  const PackedPatches<T, Source> packed(layer, set);
  const int64_t parts = std::min(kProductParts, chunks.count()), most = chunks.most_features();
  Layout layout;
  const int64_t places[] = {layout.place(padded, layer.input_size, sizeof(T)),
                            layout.place(padded, layer.output_size, sizeof(T)),
                            layout.place(parts * most, padded, sizeof(T)),
                            layout.place(parts * most * kernels.lanes, num_columns, sizeof(T)),
                            layout.place(parts * (most + kernels.lanes), num_columns, sizeof(T)),
                            layout.place(num_columns, padded, sizeof(T)),
                            layout.place(parts * num_sums, padded, sizeof(double))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  const auto array = [&](int which) { return reinterpret_cast<T*>(workspace->memory() + places[which]); };
  T *const inputs = array(0), *const output_grads = array(1), *const across = array(5);
  double* const totals = reinterpret_cast<double*>(workspace->memory() + places[6]);
  for (int64_t c = 0; c < num_columns; ++c) {
    for (int64_t n = 0; n < padded; ++n) across[c * padded + n] = n < num_samples ? weights[n * num_columns + c] : T{0};
  }
  std::fill_n(totals, parts * num_sums * padded, 0.0);
  parallel(num_panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel, samples = std::min(panel, num_samples - first);
      packed.pack(first, samples, inputs + first * layer.input_size, output_grads + first * layer.output_size);
    }
  });
  parallel(parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      T* const gradients = array(2) + part * most * padded;
      T* const sums = array(3) + part * most * kernels.lanes * num_columns;
      T* const vectors = array(4) + part * (most + kernels.lanes) * num_columns;
      double* const total = totals + part * num_sums * padded;
      for (int64_t c = part; c < chunks.count(); c += parts) {
        const int64_t features = chunks.features(c), stride = features + kernels.lanes;
        for (int64_t p = 0; p < num_panels; ++p) {
          T* const formed = gradients + p * panel * features;
          packed.form(chunks, c, inputs + p * panel * layer.input_size, output_grads + p * panel * layer.output_size, formed);
          kernels.add_panel(formed, features, across + p * panel, padded, num_columns, p == 0, sums, total + p * panel);
        }
        for (int64_t k = 0; k < num_columns; ++k) {
          kernels.sum_features(sums + k * features * kernels.lanes, features, vectors + k * stride);
        }
        for (int64_t p = 0; p < num_panels; ++p) {
          kernels.apply_panel(gradients + p * panel * features, features, vectors, stride, num_columns,
                              total + padded + p * panel, padded);
        }
      }
    }
  });
  for (int64_t n = 0; n < num_samples; ++n) {
    for (int64_t s = 0; s < num_sums; ++s) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += totals[(part * num_sums + s) * padded + n];
      result[n * num_sums + s] = static_cast<T>(sum);
    }
  }
  Workspace::keep(std::move(workspace));
  return true;
}

}  // namespace sgdkern
