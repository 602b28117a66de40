// What is launched for the norms of minibatches' sums. Runs the same with the kernels on a GPU (minibatch_norms.cu) and on
// the CPU (csrc/dev/cuda_kernels.cpp).
#pragma once

#include "gram_launch.h"
#include "minibatch_norms_kernel.cuh"

namespace sgdkern {

// result [M], for minibatches of at least one sample; `allocate(count)` gives memory for that many sums, which must live
// until the launches are queued.
template <class Product, class Queue, class Allocate>
void minibatch_norms(const std::vector<Layer<typename Product::Element>>& layers, const int64_t* indices,
                     int64_t num_minibatches, int64_t size, int64_t num_samples, Queue queue, const Device& device,
                     const Allocate& allocate, typename Product::Sum* result) {
  const int64_t tiles = triangle(small_tiles(size));
  if (num_minibatches == 0) return;
  typename Product::Sum* const parts = tiles == 1 ? result : allocate(tiles * num_minibatches);
  const Shape shape{num_minibatches * tiles, SmallTile::kThreads, kStages * SmallTile::kStageBytes};
  each_launch(layers, [&](const Layers<typename Product::Element>& some, bool first) {
    queue(minibatch_norms_kernel<Product>, shape, some, indices, num_minibatches, size, num_samples, first, parts);
  });
  if (tiles > 1) add_parts(queue, device, parts, tiles, num_minibatches, result);
}

}  // namespace sgdkern
