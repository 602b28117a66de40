// K [N, N] = G G^T of a layer whose weight is used at several positions: g_n[o, tap] = sum over positions t of
// b_n[o, t] a_n[t, tap]. A convolution's taps are (channel, kernel row, kernel column), a sequence layer's its features.
//
// Work     N * T * O * taps multiply-adds for the gradients, N (N + 1) / 2 * O * taps for their products.
// Traffic  the factors are read and packed once. Gradients are formed kChunk features at a time, in the packed layout that
//          the products want, used, and overwritten: neither patches nor gradients are ever stored whole.
// Layout   as in gram.h, samples lie side by side in a panel: one number of several samples is a vector. So a sum over
//          positions is plain vector multiply-adds, four outputs by three taps at a time, whatever stride or dilation.
// Threads  few samples make few tiles. Then the chunks are dealt out to kParts parts, each with a K of its own, and these are
//          added at the end; else tiles are shared, chunk by chunk. The number of parts does not depend on the threads.
// Numerics fixed order: positions in order, features as in gram.h, then chunks, then parts.
#pragma once

#include "gram.h"

namespace sgdkern {

constexpr int64_t kChunk = 2048;         // features formed at a time: 256 KiB of a float32 panel at AVX-512
constexpr int64_t kChunkTaps = 128;      // of them, for one output:
constexpr int64_t kShareOutputs = 16;    // their inputs serve so many outputs before they are left
constexpr int64_t kBlockPositions = 16;  // at so many positions four outputs' gradients, 8 KiB, and
constexpr int64_t kBlockTaps = 12;       // the inputs of so many taps, 24 KiB at most, stay in the first-level cache
constexpr int64_t kFewSamples = 256;     // up to here K is a quarter of a mebibyte in float32, and parts have one each
constexpr int64_t kParts = 8;

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

// So many outputs and taps are formed at a time: whole register blocks, chunks of like size, and so many at least.
struct PatchChunk {
  int64_t outputs, taps;
};

inline PatchChunk patch_chunk(int64_t num_outputs, int64_t num_taps, int64_t at_least = 1) {
  constexpr int64_t kOutputs = 4, kTaps = 3;  // of the register blocks
  const auto whole = [](int64_t count, int64_t block) { return (count + block - 1) / block * block; };
  const int64_t parts = std::max<int64_t>(1, (num_taps + kChunkTaps - 1) / kChunkTaps);
  const int64_t taps = std::min(num_taps, whole((num_taps + parts - 1) / parts, kTaps));
  const int64_t outputs = (kChunk / std::max<int64_t>(taps, 1) + kOutputs / 2) / kOutputs * kOutputs;
  const int64_t share = whole((num_outputs * parts + at_least - 1) / at_least, kOutputs);
  return {std::min({num_outputs, std::max(outputs, kOutputs), std::max(share, kShareOutputs)}), taps};
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
  const int64_t num_taps = layer.taps.size(), size = num_samples * num_samples;
  const bool few = num_samples <= kFewSamples;
  const PatchChunk chunk = patch_chunk(layer.num_outputs, num_taps, few ? kParts : 1);
  const Positions positions = positions_of(layer);
  std::vector<std::array<int64_t, 2>> chunks;  // first outputs and taps
  for (int64_t output = 0; output < layer.num_outputs; output += chunk.outputs) {
    for (int64_t tap = 0; tap < num_taps; tap += chunk.taps) chunks.push_back({output, tap});
  }
  const int64_t num_chunks = chunks.size(), parts = few ? std::min(kParts, num_chunks) : 1;
  const int64_t buffer = num_panels * panel * chunk.outputs * chunk.taps;
  Layout layout;
  const int64_t places[] = {layout.place(num_panels * panel, layer.input_size, sizeof(T)),
                            layout.place(num_panels * panel, layer.output_size, sizeof(T)),
                            layout.place(parts, buffer, sizeof(T)),
                            layout.place(std::max<int64_t>(parts - 1, 0), size, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  const auto array = [&](int which) { return reinterpret_cast<T*>(workspace->memory() + places[which]); };
  T *const inputs = array(0), *const output_grads = array(1), *const gradients = array(2), *const others = array(3);

  parallel(num_panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel, samples = std::min(panel, num_samples - first);
      pack_samples<T>(layer, first, samples, set, inputs + first * layer.input_size,
                      output_grads + first * layer.output_size);
    }
  });
  const auto features_of = [&](int64_t c) {
    return std::min(chunk.outputs, layer.num_outputs - chunks[c][0]) * std::min(chunk.taps, num_taps - chunks[c][1]);
  };
  const auto form = [&](int64_t c, int64_t p, T* into) {
    const auto [output, tap] = chunks[c];
    kernels.form_gradients(inputs + p * panel * layer.input_size,
                           output_grads + p * panel * layer.output_size + output * layer.output_stride * panel,
                           layer.taps.data() + tap, std::min(chunk.taps, num_taps - tap),
                           std::min(chunk.outputs, layer.num_outputs - output), layer.output_stride, positions,
                           into + p * panel * features_of(c));
  };
  const int64_t tile = num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;
  const int64_t side = (num_samples + tile - 1) / tile;
  std::vector<std::array<int64_t, 2>> tiles;
  for (int64_t i = 0; i < side; ++i) {
    for (int64_t j = 0; j <= i; ++j) tiles.push_back({i * tile, j * tile});
  }
  const auto multiply = [&](int64_t c, int64_t begin, int64_t end, const T* formed, Sums<T>& sums, T* gram) {
    for (int64_t at = begin; at < end; ++at) {
      kernels.add_products(formed, features_of(c), num_samples, tile, tiles[at][0], tiles[at][1], sums, gram);
    }
  };
  std::atomic<bool> enough_memory{true};
  const auto with_sums = [&](const auto& body) {
    const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
    sums ? body(*sums) : void(enough_memory = false);
  };
  std::fill(result, result + size, T{0});
  if (few) {
    parallel(parts, [&](int64_t begin, int64_t end) {
      T* const formed = gradients + begin * buffer;  // a thread's own
      with_sums([&](Sums<T>& sums) {
        for (int64_t part = begin; part < end; ++part) {
          T* const gram = part ? std::fill_n(others + (part - 1) * size, size, T{0}) - size : result;
          for (int64_t c = part; c < num_chunks; c += parts) {
            for (int64_t p = 0; p < num_panels; ++p) form(c, p, formed);
            multiply(c, 0, tiles.size(), formed, sums, gram);
          }
        }
      });
    });
    for (int64_t part = 1; part < parts; ++part) {
      const T* other = others + (part - 1) * size;
      for (int64_t i = 0; i < size; ++i) result[i] += other[i];
    }
  } else {
    for (int64_t c = 0; c < num_chunks; ++c) {
      parallel(num_panels, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) form(c, p, gradients);
      });
      parallel(tiles.size(), [&](int64_t begin, int64_t end) {
        with_sums([&](Sums<T>& sums) { multiply(c, begin, end, gradients, sums, result); });
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
