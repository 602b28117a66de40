// What is launched for positions pair by pair. Runs the same with the kernels on a GPU (gram_positions.cu) and on the CPU
// (csrc/dev/cuda_kernels.cpp).
#pragma once

#include "gram_launch.h"
#include "gram_positions_kernel.cuh"

namespace sgdkern {

// As many samples as a tile holds; more where that leaves less than an eighth of the tiles' rows idle, and no multiprocessor.
inline Groups groups_of(int64_t num_samples, int64_t num_positions, int64_t side, const Device& device) {
  const auto wasteful = [&](int64_t samples) {
    const int64_t rows = samples * num_positions, padded = (rows + side - 1) / side * side;
    return padded * 8 > rows * 9;
  };
  const auto all_are_busy = [&](int64_t samples) { return triangle(num_samples / samples) >= device.multiprocessors; };
  const int64_t fitting = std::clamp<int64_t>(side / num_positions, 1, num_samples);
  int64_t samples = fitting;
  while (samples < num_samples && wasteful(samples) && all_are_busy(samples + 1)) ++samples;
  return {num_samples, num_positions, wasteful(samples) ? fitting : samples};
}

// gram [N, N], from a layer of N * T rows.
template <class Product, class Queue>
void gram_positions(Layer<typename Product::Element> layer, int64_t num_samples, int64_t num_positions, Queue queue,
                    const Device& device, typename Product::Sum* gram) {
  if (num_samples == 0) return;
  if (num_positions == 0) {  // as one position without features
    layer.factor[0].features = layer.factor[1].features = 0;
    num_positions = 1;
  }
  const auto launch = [&]<class Tile>() {
    const Groups groups = groups_of(num_samples, num_positions, Tile::kSamples, device);
    constexpr int64_t kBytes = shared_bytes<Product, Tile>();
    const int64_t held = device.multiprocessors * resident(device.shared_bytes, kBytes);
    queue(gram_positions_kernel<Product, Tile>, Shape{std::min(triangle(groups.count()), held), Tile::kThreads, kBytes},
          layer, groups, gram);
  };
  if constexpr (kHasLargeTiles<Product>) {
    if (wants_large_tiles<Product>(num_samples * num_positions, device)) return launch.template operator()<LargeTile>();
  }
  launch.template operator()<SmallTile>();
}

}  // namespace sgdkern
