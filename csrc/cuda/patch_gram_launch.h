// What is launched for a convolution or a sequence layer: explicit gradients, and the Gram matrix by chunks of them that are
// formed, multiplied and overwritten. Runs the same with the kernels on a GPU (patch_gradients.cu, patch_gram.cu) and on the
// CPU (csrc/dev/cuda_kernels.cpp).
#pragma once

#include "gram_launch.h"
#include "patch_gram_kernel.cuh"

#include <type_traits>

namespace sgdkern {

constexpr int64_t kChunkBudget = 32 << 20;  // bytes of gradients: they stay in the second-level cache (40 MB and up)

// Outputs and taps of a chunk: whole tiles of each, as many as fit.
struct ChunkSizes {
  int64_t outputs, taps;

  ChunkSizes(int64_t num_samples, int64_t num_outputs, int64_t num_taps, int64_t element_size, int64_t budget) {
    constexpr int64_t kSide = SmallTile::kSamples;
    const int64_t most = budget / (std::max<int64_t>(num_samples, 1) * element_size * kSide * kSide);  // tiles a sample
    const int64_t tap_tiles = std::clamp<int64_t>(most, 1, std::max<int64_t>(small_tiles(num_taps), 1));
    const int64_t output_tiles = std::max<int64_t>(1, most / tap_tiles);
    taps = std::min(tap_tiles * kSide, num_taps);
    outputs = std::min(output_tiles * kSide, num_outputs);
  }

  // Numbers from one sample's gradients to the next's: rows of whole chunks of 16 bytes.
  int64_t stride() const { return (outputs * taps + 3) / 4 * 4; }
};

// gradients [N, chunk.stride], the first chunk.num_outputs * chunk.num_taps of each row.
template <class Product, class Source, class Queue>
void form_gradients(const PatchLayer<Source>& layer, const PatchChunk& chunk, Queue queue, typename Product::Sum* gradients) {
  const int64_t blocks = layer.num_samples * small_tiles(chunk.num_outputs) * small_tiles(chunk.num_taps);
  if (blocks) {
    queue(patch_gradients<Product, Source>, Shape{blocks, SmallTile::kThreads, patch_shared_bytes<Product>()}, layer, chunk,
          gradients);
  }
}

// gradients [N, O * taps]: all of them.
template <class Product, class Source, class Queue>
void form_gradients(const PatchLayer<Source>& layer, Queue queue, typename Product::Sum* gradients) {
  const PatchChunk all{0, layer.num_outputs, 0, layer.num_taps, layer.num_outputs * layer.num_taps};
  form_gradients<Product>(layer, all, queue, gradients);
}

// gram [N, N]. `allocate(count)` gives memory for that many sums, which must live until the launches are queued.
template <class Product, class Source, class Queue, class Allocate>
void patch_gram(const PatchLayer<Source>& layer, Queue queue, const Device& device, int64_t budget, const Allocate& allocate,
                typename Product::Sum* gram) {
  using Sum = typename Product::Sum;
  // Sums of products of 16-bit numbers are float32 numbers, to be multiplied as such.
  using Squares = std::conditional_t<sizeof(Source) == 2, CompensatedTf32, Product>;
  const int64_t num_samples = layer.num_samples;
  const ChunkSizes sizes(num_samples, layer.num_outputs, layer.num_taps, sizeof(Sum), budget);
  GramSum<Squares, Queue> sum(queue, device, num_samples);
  constexpr int64_t kDepth = kRowBytes / sizeof(Sum);
  const int64_t pieces = (sizes.outputs * sizes.taps + kDepth - 1) / kDepth;
  const int64_t num_parts = std::clamp<int64_t>(std::min(sum.most_parts(), pieces / 4), 1, kMostLayers);
  Sum* const gradients = allocate(num_samples * sizes.stride());
  Sum* const parts = num_parts == 1 ? gram : allocate(num_parts * num_samples * num_samples);

  const auto add = [&](const PatchChunk& chunk) {
    const int64_t features = chunk.num_outputs * chunk.num_taps;
    form_gradients<Product>(layer, chunk, queue, gradients);
    std::vector<Layer<Sum>> layers;
    const int64_t some = (features + kDepth - 1) / kDepth;  // a part's features: whole stages
    for (int64_t part = 0; part < num_parts; ++part) {
      const int64_t begin = some * part / num_parts * kDepth, end = some * (part + 1) / num_parts * kDepth;
      const Factor<Sum> rows{gradients + begin, std::min(end, features) - begin, chunk.stride,
                             alignment_of(gradients + begin, chunk.stride)};
      layers.push_back({{rows, rows}, 1, false});
    }
    sum.add(layers, num_parts, parts);
  };
  if (layer.num_outputs == 0 || layer.num_taps == 0) add({0, 0, 0, 0, 0});
  for (int64_t output = 0; output < layer.num_outputs; output += sizes.outputs) {
    for (int64_t tap = 0; tap < layer.num_taps; tap += sizes.taps) {
      add({output, std::min(sizes.outputs, layer.num_outputs - output), tap, std::min(sizes.taps, layer.num_taps - tap),
           sizes.stride()});
    }
  }
  if (num_parts > 1) sum.finish(parts, num_parts, gram);
}

}  // namespace sgdkern
