// result [N, O * taps]: the per-sample gradients of a layer whose weight is used at several positions,
// g_n[o, tap] = sum over positions t of b_n[o, t] a_n[t, tap].
//
// Work     N * T * O * taps multiply-adds, formed as in packed_patches.h.
// Traffic  the factors are read and packed once, each gradient is transposed out of a first-level cache and written once.
// Numerics as in packed_patches.h; a sample is one thread's: results do not depend on the number of threads.
#pragma once

#include "packed_patches.h"

namespace sgdkern {

template <class T>
struct RowKernels {
  void (*unpack)(const T* packed, int64_t features, int64_t samples, T* rows, int64_t stride);
};

#define SGDKERN_KERNELS "patch_gradients_rows.inl"
#include "instruction_sets.inl"

// Returns false when there was no memory for packed factors; `parallel` as in gram.h.
template <class T, class Source, class Parallel>
bool patch_gradients(const PatchLayer<Source>& layer, int64_t num_samples, InstructionSet set, Parallel&& parallel,
                     T* result) {
  const int64_t panel = kernels_for<Kernels<T, Source>>(set).panel, num_panels = (num_samples + panel - 1) / panel;
  const int64_t num_taps = layer.taps.size(), row = layer.num_outputs * num_taps;
  const PatchChunks chunks{patch_chunk(layer.num_outputs, num_taps), layer.num_outputs, num_taps};
  const PackedPatches<T, Source> packed(layer, set);
  std::atomic<bool> enough_memory{true};
  parallel(num_panels, [&](int64_t begin, int64_t end) {
    Layout layout;
    const int64_t places[] = {layout.place(panel, layer.input_size, sizeof(T)),
                              layout.place(panel, layer.output_size, sizeof(T)),
                              layout.place(panel, chunks.most_features(), sizeof(T))};
    std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
    if (!workspace) {
      enough_memory = false;
      return;
    }
    T* const inputs = reinterpret_cast<T*>(workspace->memory() + places[0]);
    T* const output_grads = reinterpret_cast<T*>(workspace->memory() + places[1]);
    T* const gradients = reinterpret_cast<T*>(workspace->memory() + places[2]);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel, samples = std::min(panel, num_samples - first);
      packed.pack(first, samples, inputs, output_grads);
      for (int64_t c = 0; c < chunks.count(); ++c) {
        packed.form(chunks, c, inputs, output_grads, gradients);
        const int64_t taps = chunks.taps(c);
        for (int64_t o = 0; o < chunks.outputs(c); ++o) {
          T* const rows = result + first * row + (chunks.output(c) + o) * num_taps + chunks.tap(c);
          kernels_for<RowKernels<T>>(set).unpack(gradients + o * taps * panel, taps, samples, rows, row);
        }
      }
    }
    Workspace::keep(std::move(workspace));
  });
  return enough_memory;
}

}  // namespace sgdkern
