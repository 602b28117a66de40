// K [N, N] = sum over layers of (A A^T + c) * (D D^T), elementwise product; A [N, I] the layer's inputs, D [N, O] the
// gradients at its outputs, c = 1 where it has a bias (the constant column of A is folded in, never stored).
//
// Work     N (N + 1) / 2 * sum(I + O) multiply-adds: the lower triangle only, mirrored once.
// Traffic  every factor is read once and packed once; K is written once. No N x N temporary: each thread keeps three
//          tiles (147 KiB each in float32), which with the panels in use fit a second-level cache of 1 MiB. Where K is much
//          larger than the factors, two blocks of samples at a time are packed: their panels take a sixteenth of K.
// Tiling   samples are packed in panels [features, kPanel], so that a row of a panel is what a register block needs
//          next, whether it serves as the left operand (broadcast) or as the right one (vectors). A block of
//          kBlockFeatures rows of a right panel stays in the first-level cache while all left panels pass it.
//          A A^T of a tile goes to a buffer; D D^T is multiplied with it while still in registers.
// Numerics sums run over features in order within blocks of kBlockFeatures, then over blocks, then over layers: for a
//          given instruction set a result depends neither on the number of threads nor on the run. float32 and float64
//          accumulate in their own type, bfloat16 and float16 are widened to float32 when packed. Blocks of 384 are
//          3 % faster on wide layers, but their longer sums lose up to four times what torch.mm loses; 192 loses less.
// Tried and dropped: see docs/decisions/0003-own-gram-kernel.md.
//
// This half is plain C++ on raw pointers, without torch: tests, sanitizers and benchmarks call each instruction set.
#pragma once

#include "instruction_sets.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace sgdkern {

constexpr int kTileSamples = 192;      // divisible by twice every panel
constexpr int kBlockFeatures = 192;    // 24 KiB of a float32 panel at AVX-512; see Numerics
constexpr int kBlockTiles = 2;         // least side of a block whose factors are packed by themselves
constexpr int kTilesAThread = 4;       // of two blocks' tiles, at least
constexpr int kPrefetchFeatures = 64;  // packing reads many rows at once, too many for the hardware's prefetcher

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <class T, class Source>
inline __attribute__((always_inline)) T widen(Source value) {
  if constexpr (std::is_same_v<Source, BFloat16>) {
    return __builtin_bit_cast(float, uint32_t{value.bits} << 16);
  } else if constexpr (std::is_same_v<Source, Float16>) {
    // Exponent and mantissa moved to their float32 places are 2^-112 times the value, subnormals included.
    const float magnitude = __builtin_bit_cast(float, uint32_t(value.bits & 0x7fff) << 13) * 0x1p112f;
    const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinity or NaN
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | special | sign);
  } else {
    return value;
  }
}

// One layer as the caller has it: rows of `*_stride` elements, contiguous within a row.
template <class Source>
struct Layer {
  const Source* inputs;        // [N, I]
  const Source* output_grads;  // [N, O]
  int64_t in_features, out_features, inputs_stride, output_grads_stride;
  bool constant_column;
};

template <class T>
struct PackedLayer {
  T* inputs;        // [N / kPanel, I, kPanel]
  T* output_grads;  // [N / kPanel, O, kPanel]
  int64_t in_features, out_features;
  bool constant_column;
};

// A thread's tiles.
template <class T>
struct Sums {
  alignas(64) T first[kTileSamples * kTileSamples];   // A A^T of a layer
  alignas(64) T second[kTileSamples * kTileSamples];  // D D^T, while its features come in more than one block
  alignas(64) T total[kTileSamples * kTileSamples];   // K
};

// What an instruction set offers.
template <class T, class Source>
struct Kernels {
  int64_t panel;
  void (*pack)(const Source* rows, int64_t stride, int64_t samples, int64_t features, T* packed);
  void (*gram_tile)(const PackedLayer<T>* layers, int64_t num_layers, int64_t num_samples, int64_t tile, int64_t row0,
                    int64_t column0, int64_t row_at, int64_t column_at, Sums<T>& sums, T* gram);
};

#define SGDKERN_KERNELS "gram_tile.inl"
#include "instruction_sets.inl"

// Cache-line aligned memory of one call.
class Workspace {
 public:
  // Null when there is no memory.
  static std::unique_ptr<Workspace> make(int64_t bytes) {
    std::unique_ptr<Workspace> workspace(spare_.exchange(nullptr));
    if (!workspace || workspace->bytes_ < bytes) workspace.reset(new Workspace(bytes));
    if (!workspace->memory_) workspace.reset();
    return workspace;
  }

  // A page fault every 4 KiB of fresh memory costs a tenth of the time on wide layers: keep what is not too large.
  static void keep(std::unique_ptr<Workspace> workspace) {
    if (workspace && workspace->bytes_ <= kSpareBytes) delete spare_.exchange(workspace.release());
  }

  ~Workspace() { ::operator delete(memory_, std::align_val_t{kAlignment}); }

  char* memory() const { return static_cast<char*>(memory_); }

  static constexpr int64_t kAlignment = 64;

 private:
  explicit Workspace(int64_t bytes)
      : bytes_(bytes), memory_(::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow)) {}

  static constexpr int64_t kSpareBytes = 64 << 20;
  static inline std::atomic<Workspace*> spare_{nullptr};
  int64_t bytes_;
  void* memory_;
};

// Lays out arrays one behind the other; `bytes` is -1 once they cannot be counted in 64 bits.
class Layout {
 public:
  // The place of an array [rows, columns] of elements of `size` bytes.
  int64_t place(int64_t rows, int64_t columns, int64_t size) {
    const int64_t at = bytes_;
    int64_t count = 0;  // an expanded tensor can have more elements than memory has bytes
    if (at < 0 || __builtin_mul_overflow(rows, columns, &count) || __builtin_mul_overflow(count, size, &count) ||
        __builtin_add_overflow(count, at + Workspace::kAlignment, &count)) {
      return bytes_ = -1;
    }
    bytes_ = count / Workspace::kAlignment * Workspace::kAlignment;
    return at;
  }

  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Room for `num_samples` samples of every layer, packed, in the memory that is returned; null when there is none.
template <class T, class Source>
std::unique_ptr<Workspace> room_for(const std::vector<Layer<Source>>& layers, int64_t num_samples, int64_t panel,
                                    std::vector<PackedLayer<T>>& packed) {
  const int64_t padded = (num_samples + panel - 1) / panel * panel;
  Layout layout;
  std::vector<std::array<int64_t, 2>> places;
  for (const Layer<Source>& layer : layers) {
    places.push_back({layout.place(padded, layer.in_features, sizeof(T)),
                      layout.place(padded, layer.out_features, sizeof(T))});
  }
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return nullptr;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    packed.push_back({reinterpret_cast<T*>(workspace->memory() + places[l][0]),
                      reinterpret_cast<T*>(workspace->memory() + places[l][1]), layers[l].in_features,
                      layers[l].out_features, layers[l].constant_column});
  }
  return workspace;
}

// Samples first ... last - 1 of every layer packed, as samples `at` ... of what is packed.
template <class T, class Source, class Parallel>
void pack_samples(const std::vector<Layer<Source>>& layers, int64_t first, int64_t last, const Kernels<T, Source>& kernels,
                  Parallel&& parallel, int64_t at, const std::vector<PackedLayer<T>>& packed) {
  parallel((last - first + kernels.panel - 1) / kernels.panel, [&](int64_t begin, int64_t end) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const Layer<Source>& layer = layers[l];
      for (int64_t from = begin * kernels.panel; from < std::min(end * kernels.panel, last - first); from += kernels.panel) {
        const int64_t row = first + from, samples = std::min(kernels.panel, last - row);
        kernels.pack(layer.inputs + row * layer.inputs_stride, layer.inputs_stride, samples, layer.in_features,
                     packed[l].inputs + (at + from) * layer.in_features);
        kernels.pack(layer.output_grads + row * layer.output_grads_stride, layer.output_grads_stride, samples,
                     layer.out_features, packed[l].output_grads + (at + from) * layer.out_features);
      }
    }
  });
}

// Samples that are packed at a time: all, or a block whose panels, with those of another, take a sixteenth of K, or more
// where two blocks have too few tiles for all threads. Blocks of fewer than kBlockTiles would cost more than 5 % in packing.
template <class Source>
int64_t block_samples(const std::vector<Layer<Source>>& layers, int64_t num_samples, int64_t tile, int64_t num_threads) {
  double features = 0;
  for (const Layer<Source>& layer : layers) features += double(layer.in_features) + double(layer.out_features);
  const double tiles = std::floor(double(num_samples) * double(num_samples) / (32 * std::max(features, 1.0) * tile));
  const double block = tile * std::max(tiles, std::ceil(std::sqrt(kTilesAThread * double(num_threads))));
  return tiles < kBlockTiles || 2 * block >= num_samples ? num_samples : static_cast<int64_t>(block);
}

// gram [N, N], from layers of N samples. `parallel(count, body)` calls body(begin, end) on parts of [0, count), on up to
// num_threads threads. Returns false when there is no memory for packed factors or a thread's sums.
template <class T, class Source, class Parallel>
bool gram(const std::vector<Layer<Source>>& layers, int64_t num_samples, InstructionSet set, Parallel&& parallel,
          int64_t num_threads, T* result) {
  const Kernels<T, Source>& kernels = kernels_for<Kernels<T, Source>>(set);
  // Few samples: smaller tiles, so that every thread has some. The sums are the same.
  const int64_t tile = num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;
  const int64_t block = block_samples(layers, num_samples, tile, num_threads);
  std::vector<PackedLayer<T>> packed;
  std::unique_ptr<Workspace> workspace =
      room_for<T>(layers, block < num_samples ? 2 * block : num_samples, kernels.panel, packed);
  if (!workspace) return false;
  const auto pack = [&](int64_t first, int64_t at) {
    pack_samples<T>(layers, first, std::min(first + block, num_samples), kernels, parallel, at, packed);
  };
  int64_t rows_at = block, columns_at = 0;  // where a block of rows of K, and one of columns, is among the packed samples
  pack(0, columns_at);
  for (int64_t columns = 0; columns < num_samples; columns += block, std::swap(rows_at, columns_at)) {
    // The last rows first: those that the next columns begin with are there when these columns are done.
    for (int64_t rows = (num_samples - 1) / block * block; rows >= columns; rows -= block) {
      const bool diagonal = rows == columns;
      if (!diagonal) pack(rows, rows_at);
      const int64_t to_row = (diagonal ? columns_at : rows_at) - rows, to_column = columns_at - columns;
      std::vector<std::array<int64_t, 2>> tiles;
      for (int64_t i = (std::min(rows + block, num_samples) - 1) / tile * tile; i >= rows; i -= tile) {
        for (int64_t j = columns; j <= std::min(i, columns + block - 1); j += tile) tiles.push_back({i, j});
      }
      std::atomic<std::size_t> next{0};
      parallel(static_cast<int64_t>(tiles.size()), [&](int64_t, int64_t) {  // a thread takes the next tile, not a share
        const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
        for (std::size_t at; sums && (at = next++) < tiles.size();) {
          const auto [i, j] = tiles[at];
          kernels.gram_tile(packed.data(), static_cast<int64_t>(packed.size()), num_samples, tile, i, j, to_row + i,
                            to_column + j, *sums, result);
        }
      });
      if (next < tiles.size()) return false;  // no thread had memory for its sums
    }
  }
  Workspace::keep(std::move(workspace));
  return true;
}

}  // namespace sgdkern
