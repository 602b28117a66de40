// K [N, N] = G G^T of a layer whose weight is used at several positions: g_n[o, tap] = sum over positions t of
// b_n[o, t] a_n[t, tap]. A convolution's taps are (channel, kernel row, kernel column), a sequence layer's its features.
//
// Work     N * T * O * taps multiply-adds for the gradients, N (N + 1) / 2 * O * taps for their products.
// Traffic  the factors are read and packed once. Gradients are formed kChunk features at a time, in the packed layout that
//          the products want, used, and overwritten: neither patches nor gradients are ever stored whole.
// Layout   as in gram.h, samples lie side by side in a panel: one number of several samples is a vector. So a sum over
//          positions is plain vector multiply-adds, four outputs by three taps at a time, whatever stride or dilation.
// Numerics fixed order: positions in order, features as in gram.h, then chunks.
#pragma once

#include "gram.h"

namespace sgdkern {

constexpr int64_t kChunk = 2048;         // features formed at a time: 256 KiB of a float32 panel at AVX-512
constexpr int64_t kChunkTaps = 128;      // of them, for one output: their inputs serve 16 outputs before they are left
constexpr int64_t kBlockPositions = 16;  // at so many positions four outputs' gradients, 8 KiB, and
constexpr int64_t kBlockTaps = 12;       // the inputs of so many taps, 24 KiB at most, stay in the first-level cache

// Where the positions lie: offsets into a sample's inputs and output gradients.
struct Positions {
  const int64_t* input;
  const int64_t* output;
  int64_t count;
};

template <class T>
struct PatchKernels {
  void (*form_gradients)(const T* inputs, const T* output_grads, const int64_t* taps, int64_t num_taps, int64_t outputs,
                         int64_t output_stride, const Positions& positions, T* gradients);
  void (*add_products)(const T* gradients, int64_t features, int64_t num_samples, int64_t tile, int64_t row0,
                       int64_t column0, Sums<T>& sums, T* gram);
};

#define SGDKERN_KERNELS "patch_gram_tile.inl"
#include "instruction_sets.inl"

template <class T>
const PatchKernels<T>& patch_kernels_for(InstructionSet set) {
#ifdef __x86_64__
  if (set == InstructionSet::kAvx512) return avx512::kPatchKernels<T>;
  if (set == InstructionSet::kAvx2) return avx2::kPatchKernels<T>;
#endif
  return baseline::kPatchKernels<T>;
}

// A layer as the caller has it: each sample's inputs and output gradients lie densely, in any order of axes.
template <class Source>
struct PatchLayer {
  const Source* inputs;
  const Source* output_grads;
  int64_t input_size, output_size;         // numbers a sample
  int64_t inputs_stride, output_grads_stride;  // between samples
  int64_t num_outputs, output_stride;      // between outputs, within a sample
  std::vector<int64_t> taps;               // offsets into a sample's inputs
  std::vector<int64_t> input_positions, output_positions;
};

template <class Source>
Positions positions_of(const PatchLayer<Source>& layer) {
  return {layer.input_positions.data(), layer.output_positions.data(),
          static_cast<int64_t>(layer.input_positions.size())};
}

// So many outputs and taps are formed at a time: whole register blocks, and chunks of like size.
struct PatchChunk {
  int64_t outputs, taps;
};

inline PatchChunk patch_chunk(int64_t num_outputs, int64_t num_taps) {
  constexpr int64_t kOutputs = 4, kTaps = 3;  // of the register blocks
  const int64_t parts = std::max<int64_t>(1, (num_taps + kChunkTaps - 1) / kChunkTaps);
  const int64_t even = (num_taps + parts - 1) / parts, taps = std::min(num_taps, (even + kTaps - 1) / kTaps * kTaps);
  const int64_t outputs = (kChunk / std::max<int64_t>(taps, 1) + kOutputs / 2) / kOutputs * kOutputs;
  return {std::min(num_outputs, std::max(outputs, kOutputs)), taps};
}

// Packs some samples of a layer, one panel at most.
template <class T, class Source>
void pack_samples(const PatchLayer<Source>& layer, int64_t first, int64_t samples, InstructionSet set, T* inputs,
                  T* output_grads) {
  const auto pack = kernels_for<T, Source>(set).pack;
  pack(layer.inputs + first * layer.inputs_stride, layer.inputs_stride, samples, layer.input_size, inputs);
  pack(layer.output_grads + first * layer.output_grads_stride, layer.output_grads_stride, samples, layer.output_size,
       output_grads);
}

// result [N, N]; as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool patch_gram(const PatchLayer<Source>& layer, int64_t num_samples, InstructionSet set, Parallel&& parallel, T* result) {
  const PatchKernels<T>& kernels = patch_kernels_for<T>(set);
  const int64_t panel = kernels_for<T, Source>(set).panel, num_panels = (num_samples + panel - 1) / panel;
  const int64_t num_taps = layer.taps.size();
  const PatchChunk chunk = patch_chunk(layer.num_outputs, num_taps);
  const Positions positions = positions_of(layer);
  Layout layout;
  const int64_t places[] = {layout.place(num_panels * panel, layer.input_size, sizeof(T)),
                            layout.place(num_panels * panel, layer.output_size, sizeof(T)),
                            layout.place(num_panels * panel, chunk.outputs * chunk.taps, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  T* const inputs = reinterpret_cast<T*>(workspace->memory() + places[0]);
  T* const output_grads = reinterpret_cast<T*>(workspace->memory() + places[1]);
  T* const gradients = reinterpret_cast<T*>(workspace->memory() + places[2]);

  parallel(num_panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel, samples = std::min(panel, num_samples - first);
      pack_samples<T>(layer, first, samples, set, inputs + first * layer.input_size,
                      output_grads + first * layer.output_size);
    }
  });
  const int64_t tile = num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;
  const int64_t side = (num_samples + tile - 1) / tile;
  std::atomic<bool> enough_memory{true};
  std::fill(result, result + num_samples * num_samples, T{0});
  for (int64_t output = 0; output < layer.num_outputs; output += chunk.outputs) {
    for (int64_t tap = 0; tap < num_taps; tap += chunk.taps) {
      const int64_t outputs = std::min(chunk.outputs, layer.num_outputs - output);
      const int64_t taps = std::min(chunk.taps, num_taps - tap), features = outputs * taps;
      parallel(num_panels, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          kernels.form_gradients(inputs + p * panel * layer.input_size,
                                 output_grads + p * panel * layer.output_size + output * layer.output_stride * panel,
                                 layer.taps.data() + tap, taps, outputs, layer.output_stride, positions,
                                 gradients + p * panel * features);
        }
      });
      parallel(side * (side + 1) / 2, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
        if (!sums) enough_memory = false;
        for (int64_t row = 0, at = 0; sums && row < side; ++row) {
          for (int64_t column = 0; column <= row; ++column, ++at) {
            if (at < begin || at >= end) continue;
            kernels.add_products(gradients, features, num_samples, tile, row * tile, column * tile, *sums, result);
          }
        }
      });
    }
  }
  for (int64_t i = 0; i < num_samples; ++i) {
    for (int64_t j = 0; j < i; ++j) result[j * num_samples + i] = result[i * num_samples + j];
  }
  Workspace::keep(std::move(workspace));
  return enough_memory;
}

}  // namespace sgdkern
