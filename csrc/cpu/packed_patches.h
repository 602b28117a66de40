// A layer whose weight is used at several positions, and its per-sample gradients g_n[o, tap] = sum over positions t of
// b_n[o, t] a_n[t, tap], formed some outputs and taps at a time in the packed layout of gram.h.
//
// Work     T multiply-adds a gradient.
// Layout   factors are packed in strips [numbers, kLanes]: one number of several samples is a vector. So a sum over
//          positions is plain vector multiply-adds, whatever stride or dilation, eight outputs by three taps at a time.
//          Output gradients lie in the order in which they are read, and so do inputs where no two patches share one:
//          as the caller has them, positions often lie a power of two apart, in the same places of a cache.
// Numerics positions in order.
#pragma once

#include "gram.h"

#include <numeric>

namespace sgdkern {

constexpr int64_t kChunk = 2048;          // features formed at a time: 256 KiB of a float32 panel at AVX-512
constexpr int64_t kChunkTaps = 128;       // of them, for one output:
constexpr int64_t kShareOutputs = 16;     // their inputs serve so many outputs before they are left
constexpr int64_t kBlockPositions = 128;  // so many positions of eight outputs lie together, and
constexpr int64_t kBlockTaps = 12;        // serve so many taps before they leave the first- or the second-level cache

// The packed factors of a panel of samples: its strips one behind the other.
template <class T>
struct PatchPanel {
  const T* inputs;        // [input_size, kLanes]
  const T* output_grads;  // [positions / kBlockPositions, outputs / kOutputs, kBlockPositions, kOutputs, kLanes]
  int64_t input_size, num_outputs, num_positions;
  const int64_t* positions;  // where their inputs are
};

template <class T, class Source>
struct GradientKernels {
  int64_t lanes, outputs;
  void (*pack)(const Source* rows, int64_t stride, int64_t samples, int64_t features, const int64_t* places, T* packed);
  void (*form)(const PatchPanel<T>& panel, const int64_t* taps, int64_t num_taps, int64_t first_output, int64_t outputs,
               T* gradients);
};

#define SGDKERN_KERNELS "packed_patches_block.inl"
#include "instruction_sets.inl"

// So many outputs and taps are formed at a time: whole register blocks, chunks of like size, and so many at least.
struct PatchChunk {
  int64_t outputs, taps;
};

inline PatchChunk patch_chunk(int64_t num_outputs, int64_t num_taps, int64_t at_least = 1) {
  constexpr int64_t kOutputs = 8, kTaps = 3;  // of the register blocks; a chunk begins with one
  const auto whole = [](int64_t count, int64_t block) { return (count + block - 1) / block * block; };
  const int64_t parts = std::max<int64_t>(1, (num_taps + kChunkTaps - 1) / kChunkTaps);
  const int64_t taps = std::min(num_taps, whole((num_taps + parts - 1) / parts, kTaps));
  const int64_t outputs = (kChunk / std::max<int64_t>(taps, 1) + kOutputs / 2) / kOutputs * kOutputs;
  const int64_t share = whole((num_outputs * parts + at_least - 1) / at_least, kOutputs);
  return {std::min({num_outputs, std::max(outputs, kOutputs), std::max(share, kShareOutputs)}), taps};
}

// Chunks of outputs and taps in the order in which they are formed: all taps of some outputs, then the next outputs.
struct PatchChunks {
  PatchChunk chunk;
  int64_t num_outputs, num_taps;

  int64_t across() const { return num_taps ? (num_taps + chunk.taps - 1) / chunk.taps : 0; }
  int64_t count() const { return num_outputs ? (num_outputs + chunk.outputs - 1) / chunk.outputs * across() : 0; }
  int64_t output(int64_t c) const { return c / across() * chunk.outputs; }  // the first
  int64_t tap(int64_t c) const { return c % across() * chunk.taps; }
  int64_t outputs(int64_t c) const { return std::min(chunk.outputs, num_outputs - output(c)); }
  int64_t taps(int64_t c) const { return std::min(chunk.taps, num_taps - tap(c)); }
  int64_t features(int64_t c) const { return outputs(c) * taps(c); }
  int64_t most_features() const { return chunk.outputs * chunk.taps; }
};

// A layer as the caller has it: each sample's inputs and output gradients lie densely, in any order of axes.
template <class Source>
struct PatchLayer {
  const Source* inputs;
  const Source* output_grads;
  int64_t input_size, output_size;             // numbers a sample
  int64_t inputs_stride, output_grads_stride;  // between samples
  int64_t num_outputs, output_stride;          // between outputs, within a sample
  std::vector<int64_t> taps;                   // offsets into a sample's inputs
  std::vector<int64_t> input_positions, output_positions;
};

// A layer's factors packed, panels one behind the other, into memory of the caller's.
template <class T, class Source>
class PackedPatches {
 public:
  PackedPatches(const PatchLayer<Source>& layer, InstructionSet set)
      : layer_(layer), panel_(kernels_for<Kernels<T, Source>>(set).panel),
        kernels_(kernels_for<GradientKernels<T, Source>>(set)), taps_(layer.taps), positions_(layer.input_positions),
        input_places_(layer.input_size), output_places_(layer.output_size) {
    place_output_grads();
    if (!place_inputs()) {
      std::iota(input_places_.begin(), input_places_.end(), 0);
      taps_ = layer.taps, positions_ = layer.input_positions;
    }
  }

  // Up to a panel of samples.
  void pack(int64_t first, int64_t samples, T* inputs, T* output_grads) const {
    pack(layer_.inputs + first * layer_.inputs_stride, layer_.inputs_stride, samples, input_places_, inputs);
    pack(layer_.output_grads + first * layer_.output_grads_stride, layer_.output_grads_stride, samples, output_places_,
         output_grads);
  }

  // gradients [features, kPanel]: the c-th chunk of a packed panel.
  void form(const PatchChunks& chunks, int64_t c, const T* inputs, const T* output_grads, T* gradients) const {
    const PatchPanel<T> panel{inputs, output_grads, layer_.input_size, layer_.num_outputs,
                              static_cast<int64_t>(positions_.size()), positions_.data()};
    kernels_.form(panel, taps_.data() + chunks.tap(c), chunks.taps(c), chunks.output(c), chunks.outputs(c), gradients);
  }

 private:
  void pack(const Source* from, int64_t stride, int64_t samples, const std::vector<int64_t>& places, T* to) const {
    const int64_t size = places.size();
    for (int64_t at = 0; at < panel_; at += kernels_.lanes, to += size * kernels_.lanes) {
      const int64_t some = std::clamp<int64_t>(samples - at, 0, kernels_.lanes);
      kernels_.pack(from + at * stride, stride, some, size, places.data(), to);
    }
  }

  void place_output_grads() {
    const int64_t count = positions_.size();
    for (int64_t t = 0; t < count; ++t) {
      const int64_t first = t / kBlockPositions * kBlockPositions, block = std::min(kBlockPositions, count - first);
      for (int64_t o = 0; o < layer_.num_outputs; ++o) {
        const int64_t group = o / kernels_.outputs * kernels_.outputs;
        const int64_t width = std::min(kernels_.outputs, layer_.num_outputs - group);
        output_places_[layer_.output_positions[t] + o * layer_.output_stride] =
            first * layer_.num_outputs + group * block + (t - first) * width + o - group;
      }
    }
  }

  // Whether each input is of one position and tap only: then those of some positions lie together, tap by tap.
  bool place_inputs() {
    const int64_t count = positions_.size(), num_taps = taps_.size();
    if (count * num_taps != layer_.input_size) return false;
    const int64_t block = count % kBlockPositions ? count : kBlockPositions;  // of like size, so that taps are offsets
    std::fill(input_places_.begin(), input_places_.end(), -1);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t first = t / block * block;
      for (int64_t k = 0; k < num_taps; ++k) {
        int64_t& place = input_places_[layer_.input_positions[t] + layer_.taps[k]];
        if (place >= 0) return false;
        place = first * num_taps + k * block + t - first;
      }
      positions_[t] = first * num_taps + t - first;
    }
    for (int64_t k = 0; k < num_taps; ++k) taps_[k] = k * block;
    return true;
  }

  const PatchLayer<Source>& layer_;
  const int64_t panel_;
  const GradientKernels<T, Source>& kernels_;
  std::vector<int64_t> taps_, positions_, input_places_, output_places_;
};

}  // namespace sgdkern
