// What is launched for a Gram matrix, on which GPU: the tile, the blocks, the parts. Runs the same with the kernels on a
// GPU (gram.cu, patch_gram.cu) and on the CPU (csrc/dev/cuda_kernels.cpp).
#pragma once

#include "gram_kernel.cuh"

#include <algorithm>
#include <vector>

namespace sgdkern {

struct Device {
  int64_t multiprocessors;
  int64_t block_shared_bytes;  // what a block may have
  int64_t shared_bytes;        // what a multiprocessor has
};

struct Shape {
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

// Of double, two sets of 64 sums would not fit a thread's registers.
template <class Product>
constexpr bool kHasLargeTiles = sizeof(typename Product::Sum) == 4;

// Whether large tiles, which read half as much for each multiply-add, leave no more multiprocessors idle than that is worth.
// A large tile is as much work as four small ones; an estimate, not measured: 5/4 is what the traffic is worth.
template <class Product>
bool wants_large_tiles(int64_t num_samples, const Device& device) {
  if (!kHasLargeTiles<Product> || shared_bytes<Product, LargeTile>() > device.block_shared_bytes) return false;
  const auto rounds = [&](int64_t samples) {
    return (triangle((num_samples + samples - 1) / samples) + device.multiprocessors - 1) / device.multiprocessors;
  };
  return 16 * rounds(LargeTile::kSamples) <= 5 * rounds(SmallTile::kSamples);
}

inline int64_t small_tiles(int64_t count) { return (count + SmallTile::kSamples - 1) / SmallTile::kSamples; }

// sum [count] = the sum of parts [num_parts, count]. `queue` launches: queue(kernel, shape, arguments...).
template <class Sum, class Queue>
void add_parts(Queue queue, const Device& device, const Sum* parts, int64_t num_parts, int64_t count, Sum* sum) {
  const int64_t blocks = std::min((count + kSumThreads - 1) / kSumThreads, device.multiprocessors * 8);
  if (blocks) queue(sum_parts<Sum>, Shape{blocks, kSumThreads, 0}, parts, static_cast<int>(num_parts), count, sum);
}

// Calls body(some, first) with all layers, as many at a time as one launch takes, evenly.
template <class Element, class Body>
void each_launch(const std::vector<Layer<Element>>& layers, const Body& body) {
  const int64_t count = layers.size(), launches = (count + kMostLayers - 1) / kMostLayers;
  for (int64_t i = 0; i < launches; ++i) {
    const int64_t begin = i * count / launches, end = (i + 1) * count / launches;
    Layers<Element> some;
    some.count = static_cast<int>(end - begin);
    std::copy(layers.begin() + begin, layers.begin() + end, some.layer);
    body(some, i == 0);
  }
}

// A Gram matrix, summed over layers, in one launch or several.
template <class Product, class Queue>
class GramSum {
 public:
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;

  GramSum(Queue queue, const Device& device, int64_t num_samples)
      : queue_(queue), device_(device), num_samples_(num_samples),
        large_(wants_large_tiles<Product>(num_samples, device)) {}

  int64_t tile_samples() const { return large_ ? LargeTile::kSamples : SmallTile::kSamples; }

  Shape shape(int64_t num_parts) const {
    const int64_t bytes = large_ ? shared_bytes<Product, LargeTile>() : shared_bytes<Product, SmallTile>();
    const int64_t held = device_.multiprocessors * resident(device_.shared_bytes, bytes);
    return {std::min(num_tiles() * num_parts, held), large_ ? LargeTile::kThreads : SmallTile::kThreads, bytes};
  }

  // How many parts of the layers are worth a block each: as many as all fit on the GPU at once.
  int64_t most_parts() const {
    constexpr int64_t kMany = 1 << 20;
    return std::max<int64_t>(1, shape(kMany).blocks / std::max<int64_t>(num_tiles(), 1));
  }

  // parts [num_parts, N, N] = or, after the first call, += the layers, of which there must be num_parts at least.
  void add(const std::vector<Layer<Element>>& layers, int64_t num_parts, Sum* parts) {
    if (num_samples_ == 0) return;
    each_launch(layers, [&](const Layers<Element>& some, bool) {
      large_ ? launch<LargeTile>(some, num_parts, parts) : launch<SmallTile>(some, num_parts, parts);
      first_ = false;
    });
  }

  // sum [N, N] = the sum of the parts.
  void finish(const Sum* parts, int64_t num_parts, Sum* sum) {
    add_parts(queue_, device_, parts, num_parts, num_samples_ * num_samples_, sum);
  }

 private:
  int64_t num_tiles() const { return triangle((num_samples_ + tile_samples() - 1) / tile_samples()); }

  template <class Tile>
  void launch(const Layers<Element>& layers, int64_t num_parts, Sum* parts) {
    if constexpr (Tile::kSamples == SmallTile::kSamples || kHasLargeTiles<Product>) {
      queue_(gram_kernel<Product, Tile>, shape(num_parts), layers, num_samples_, static_cast<int>(num_parts), first_, parts);
    }
  }

  Queue queue_;
  Device device_;
  int64_t num_samples_;
  bool large_, first_ = true;
};

// The most layers that a launch is sure to have, over which parts can be shared.
inline int64_t fewest_layers_of_a_launch(int64_t num_layers) {
  return num_layers / std::max<int64_t>(1, (num_layers + kMostLayers - 1) / kMostLayers);
}

// The bytes, a power of two of at most 16, to which every row is aligned.
template <class Element>
int alignment_of(const Element* data, int64_t stride) {
  int bytes = 16;
  while (reinterpret_cast<uintptr_t>(data) % bytes || stride * int64_t{sizeof(Element)} % bytes) bytes /= 2;
  return bytes;
}

}  // namespace sgdkern
