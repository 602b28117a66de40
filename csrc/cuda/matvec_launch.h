// What is launched for a linear layer's part of G v and of G^T w. Runs the same with the kernels on a GPU (matvec.cu,
// rmatvec.cu) and on the CPU (csrc/dev/cuda_kernels.cpp).
#pragma once

#include "gram_launch.h"
#include "matvec_kernel.cuh"
#include "rmatvec_kernel.cuh"

namespace sgdkern {

template <class Product>
constexpr Shape matvec_shape(int64_t blocks) {
  return {blocks, SmallTile::kThreads, kStages * SmallTile::kStageBytes};
}

// result [M]; `allocate(count)` gives memory for that many sums, which must live until the launches are queued.
template <class Product, class Queue, class Allocate>
void matvec(const Factor<typename Product::Element>& inputs, const Factor<typename Product::Element>& output_grads,
            const Factor<typename Product::Element>& vector, int64_t num_rows, Queue queue, const Device& device,
            const Allocate& allocate, typename Product::Sum* result) {
  const int64_t tiles = std::max<int64_t>(1, small_tiles(output_grads.features)), blocks = small_tiles(num_rows) * tiles;
  if (blocks == 0) return;
  typename Product::Sum* const parts = tiles == 1 ? result : allocate(tiles * num_rows);
  queue(matvec_kernel<Product>, matvec_shape<Product>(blocks), inputs, vector, output_grads, num_rows, parts);
  if (tiles > 1) add_parts(queue, device, parts, tiles, num_rows, result);
}

// result [O, I]
template <class Product, class Queue, class Allocate>
void rmatvec(const Factor<typename Product::Element>& inputs, const Factor<typename Product::Element>& output_grads,
             const typename Product::Element* weights, int64_t num_rows, Queue queue, const Device& device,
             const Allocate& allocate, typename Product::Sum* result) {
  const int64_t tiles = small_tiles(output_grads.features) * small_tiles(inputs.features);
  if (tiles == 0) return;
  constexpr int64_t kDepth = kRowBytes / sizeof(typename Product::Element), kFewestStages = 8;  // of a share
  const int64_t held = device.multiprocessors * resident(device.shared_bytes, kStages * SmallTile::kStageBytes);
  const int64_t num_parts = std::max<int64_t>(1, std::min(held / tiles, num_rows / (kDepth * kFewestStages)));
  const int64_t count = output_grads.features * inputs.features;
  typename Product::Sum* const parts = num_parts == 1 ? result : allocate(num_parts * count);
  queue(rmatvec_kernel<Product>, matvec_shape<Product>(tiles * num_parts), inputs, output_grads, weights, num_rows, num_parts,
        parts);
  if (num_parts > 1) add_parts(queue, device, parts, num_parts, count, result);
}

}  // namespace sgdkern
