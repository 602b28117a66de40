// K [N, N] = sum over layers of (A A^T + c) * (D D^T), elementwise product; A [N, I] the layer's inputs, D [N, O] the
// gradients at its outputs, c = 1 where it has a bias (the constant column of A is folded in, never stored).
//
// Work     N (N + 1) / 2 * sum(I + O) multiply-adds: the lower triangle only, mirrored once.
// Traffic  every factor is read once and packed once; K is written once. Panels are multiplied while a cache has them:
//          where features are many, a slab of them is packed at a time, of all samples, and sums of all tiles wait for the
//          next; where K is much larger than the factors, two blocks of samples are packed at a time, whose panels take a
//          sixteenth of K. A tile's sums are three arrays of 147 KiB in float32; what is in use of them fits a second-level
//          cache of 1 MiB.
// Tiling   samples are packed in panels [features, kPanel], so that a row of a panel is what a register block needs
//          next, whether it serves as the left operand (broadcast) or as the right one (vectors). A block of
//          kBlockFeatures rows of a right panel stays in the first-level cache while all left panels pass it.
//          A A^T of a tile goes to a buffer; D D^T is multiplied with it while still in registers.
// Threads  take what is to be done next, a panel to pack or a tile to multiply, and wait for no more than that needs.
// Numerics sums run over features in order within blocks of kBlockFeatures, then over blocks, then over layers: for a
//          given instruction set a result depends neither on the number of threads nor on the run. float32 and float64
//          accumulate in their own type, bfloat16 and float16 are widened to float32 when packed. Blocks of 384 are
//          3 % faster on wide layers, but their longer sums lose up to four times what torch.mm loses; 192 loses less.
// Tried and dropped: see docs/decisions/0003-own-gram-kernel.md.
//
// This half is plain C++ on raw pointers, without torch: tests, sanitizers and benchmarks call each instruction set.
#pragma once

#include "instruction_sets.h"
#include "workspace.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace sgdkern {

constexpr int kTileSamples = 192;      // divisible by twice every panel
constexpr int kBlockFeatures = 192;    // 24 KiB of a float32 panel at AVX-512; see Numerics
constexpr int kSlabFeatures = 2 * kBlockFeatures;  // where N = 512, panels of 768 KiB in float32
constexpr int64_t kAllFeatures = int64_t{1} << 62;
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

// Some features of a factor.
struct Part {
  std::size_t layer;
  bool of_inputs, constant_column;
  int64_t first, features;
  bool begins, ends;  // the factor
  int64_t before;     // features of the slab's earlier parts: its panels [samples / kPanel, features, kPanel] follow theirs
};

using Slab = std::vector<Part>;  // features that are packed at a time

inline int64_t features_of(const Slab& slab) { return slab.empty() ? 0 : slab.back().before + slab.back().features; }

// Of K, on or below its diagonal.
struct Tile {
  int64_t row, rows, column, columns;  // the first ones, and how many
};

// Of a tile.
template <class T>
struct Sums {
  alignas(64) T first[kTileSamples * kTileSamples];   // A A^T of a layer
  alignas(64) T second[kTileSamples * kTileSamples];  // D D^T, while its features come in more than one block
  alignas(64) T total[kTileSamples * kTileSamples];   // K, on the diagonal its lower half only
};

// What an instruction set offers.
template <class T, class Source>
struct Kernels {
  int64_t panel;
  void (*pack)(const Source* rows, int64_t stride, int64_t samples, int64_t features, T* packed);
  // panels: of `room` samples, where the tile's first row and column are number row_at and column_at.
  void (*add_to_tile)(const Slab& slab, const T* panels, int64_t room, const Tile& tile, int64_t row_at,
                      int64_t column_at, Sums<T>& sums);
  void (*write_tile)(const Sums<T>& sums, const Tile& tile, int64_t num_samples, T* gram);
};

#define SGDKERN_KERNELS "gram_tile.inl"
#include "instruction_sets.inl"

// The layers' features in their order, `most` at a time or a few more: factors are parted between blocks of features only.
template <class Source>
std::vector<Slab> slabs_of(const std::vector<Layer<Source>>& layers, int64_t most) {
  std::vector<Slab> slabs(1);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    for (const bool of_inputs : {true, false}) {
      const int64_t features = of_inputs ? layers[l].in_features : layers[l].out_features;
      int64_t first = 0;
      do {  // once even without features: their sums are zeros
        if (features_of(slabs.back()) >= most) slabs.emplace_back();
        const int64_t before = features_of(slabs.back());
        const int64_t room = (most - before + kBlockFeatures - 1) / kBlockFeatures * kBlockFeatures;
        const int64_t count = std::min(features - first, room);
        slabs.back().push_back(
            {l, of_inputs, layers[l].constant_column, first, count, first == 0, first + count == features, before});
        first += count;
      } while (first < features);
    }
  }
  return slabs;
}

template <class Source>
double num_features(const std::vector<Layer<Source>>& layers) {
  double features = 0;
  for (const Layer<Source>& layer : layers) features += double(layer.in_features) + double(layer.out_features);
  return features;
}

// What a thread does at a time: packs a panel, or adds a slab's products to a tile.
struct Unit {
  int64_t step;
  bool packs;
  Tile tile;                  // of a panel its rows alone
  int64_t row_at, column_at;  // places of the first ones among samples that are packed
};

// In which order K is computed: in steps, each of which packs panels and multiplies what they make possible.
struct Plan {
  int64_t num_samples, panel;
  int64_t tile = num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;  // few samples: some for every thread
  int64_t side = (num_samples + tile - 1) / tile;                                   // of K, in tiles
  int64_t num_steps = 0;           // so far: units that are added are of the next one
  int64_t lag = 1;                 // a step's panels lie where those of the step so many before did
  int64_t room = 0;                // samples that a step finds packed
  std::vector<Slab> slabs;         // one for each step, or one for all
  std::vector<Unit> units;

  // Tiles' sums have to be there until the last slab.
  bool sums_wait() const { return slabs.size() > 1; }

  void pack(int64_t first, int64_t samples, int64_t at) {
    for (int64_t from = 0; from < samples; from += panel) {
      units.push_back({num_steps, true, {first + from, std::min(panel, samples - from), 0, 0}, at + from, 0});
    }
  }

  // Those on the diagonal, which are half the work, last.
  void multiply(int64_t row, int64_t column, int64_t samples, int64_t row_at, int64_t column_at) {
    for (const bool diagonal : {false, true}) {
      for (int64_t i = row; i < std::min(row + samples, num_samples); i += tile) {
        for (int64_t j = column; j <= std::min(i, column + samples - 1); j += tile) {
          const Tile some{i, std::min(tile, num_samples - i), j, std::min(tile, num_samples - j)};
          if ((i == j) == diagonal) units.push_back({num_steps, false, some, row_at + i - row, column_at + j - column});
        }
      }
    }
  }

  void by_slabs() {
    room = (num_samples + panel - 1) / panel * panel;
    for (num_steps = 0; num_steps < static_cast<int64_t>(slabs.size()); ++num_steps) {
      pack(0, num_samples, 0);
      multiply(0, 0, num_samples, 0, 0);
    }
  }

  // Pairs of blocks of rows and of columns of K, one of which was there before.
  void by_blocks(int64_t block) {
    int64_t row_at = block, column_at = 0;
    room = 2 * block;
    pack(0, block, column_at);
    multiply(0, 0, block, column_at, column_at);
    for (int64_t column = 0; column < num_samples; column += block, std::swap(row_at, column_at)) {
      // The last rows first: those that are packed when these columns are done are the next ones.
      for (int64_t row = (num_samples - 1) / block * block; row > column; row -= block) {
        ++num_steps;
        pack(row, std::min(block, num_samples - row), row_at);
        multiply(row, column, block, row_at, column_at);
        if (row == column + block) multiply(row, row, block, row_at, row_at);
      }
    }
    ++num_steps;
  }
};

// By blocks of so many samples; where that is all of them by slabs of features, if sums of all tiles take less memory than
// panels of all features would, else in one step. Results are the same.
template <class T, class Source>
Plan plan_of(const std::vector<Layer<Source>>& layers, int64_t num_samples, int64_t panel, int64_t block,
             int64_t num_threads) {
  Plan plan{num_samples, panel};
  const int64_t lag = num_threads > 1 ? 2 : 1;  // who has no tile left packs some of the next slab
  const double sums = double(plan.side) * double(plan.side + 1) / 2 * sizeof(Sums<T>);
  const double panels = double(num_samples) * sizeof(T);  // of a feature
  const bool in_slabs = sums + double(lag * kSlabFeatures) * panels < num_features(layers) * panels;
  plan.slabs = slabs_of(layers, block == num_samples && in_slabs ? kSlabFeatures : kAllFeatures);
  if (block < num_samples) {
    plan.by_blocks(block);
  } else {
    plan.lag = plan.sums_wait() ? lag : 1;
    plan.by_slabs();
  }
  return plan;
}

inline void wait_for(const std::atomic<int64_t>& units) {
  while (units.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

// Calls finish(tile, sums) for all tiles of K, each in sums.total. `parallel(count, body)` calls body(begin, end) on parts
// of [0, count), each perhaps on a thread of its own. Returns false when there is no memory for packed factors or sums.
template <class T, class Source, class Parallel, class Finish>
bool sum_tiles(const std::vector<Layer<Source>>& layers, const Plan& plan, const Kernels<T, Source>& kernels,
               Parallel&& parallel, int64_t num_threads, const Finish& finish) {
  int64_t features = 0;
  for (const Slab& slab : plan.slabs) features = std::max(features, features_of(slab));
  Layout layout;
  const int64_t places[] = {
      layout.place(plan.lag * plan.room, features, sizeof(T)),
      layout.place(plan.sums_wait() ? plan.side * (plan.side + 1) / 2 : num_threads, 1, sizeof(Sums<T>))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  T* const memory = reinterpret_cast<T*>(workspace->memory() + places[0]);
  Sums<T>* const sums = reinterpret_cast<Sums<T>*>(workspace->memory() + places[1]);
  std::vector<std::atomic<int64_t>> to_pack(plan.num_steps), to_multiply(plan.num_steps);  // units left
  for (const Unit& unit : plan.units) ++(unit.packs ? to_pack : to_multiply)[unit.step];
  std::atomic<std::size_t> next{0};
  // Units are taken in order and wait for earlier ones only: whoever has the first of those that are not done need not wait.
  parallel(num_threads, [&](int64_t thread, int64_t) {
    for (std::size_t at; (at = next++) < plan.units.size();) {
      const auto& [step, packs, tile, row_at, column_at] = plan.units[at];
      const bool last = !plan.sums_wait() || step + 1 == plan.num_steps;
      const Slab& slab = plan.slabs[plan.sums_wait() ? step : 0];
      T* const panels = memory + step % plan.lag * plan.room * features;
      if (packs) {
        if (step >= plan.lag) wait_for(to_multiply[step - plan.lag]);
        for (const Part& part : slab) {
          const Layer<Source>& layer = layers[part.layer];
          const Source* rows = part.of_inputs ? layer.inputs : layer.output_grads;
          const int64_t stride = part.of_inputs ? layer.inputs_stride : layer.output_grads_stride;
          kernels.pack(rows + tile.row * stride + part.first, stride, tile.rows, part.features,
                       panels + part.before * plan.room + row_at * part.features);
        }
        --to_pack[step];
      } else {
        wait_for(to_pack[step]);
        if (step > 0) wait_for(to_multiply[step - 1]);
        const int64_t i = tile.row / plan.tile, j = tile.column / plan.tile;
        Sums<T>& own = sums[plan.sums_wait() ? i * (i + 1) / 2 + j : thread];
        kernels.add_to_tile(slab, panels, plan.room, tile, row_at, column_at, own);
        if (last) finish(tile, own);
        --to_multiply[step];
      }
    }
  });
  Workspace::keep(std::move(workspace));
  return true;
}

// Samples that are packed at a time: all, or a block whose panels, with those of another, take a sixteenth of K, or more
// where two blocks have too few tiles for all threads. Blocks of fewer than kBlockTiles would cost more than 5 % in packing.
inline int64_t block_samples(double features, int64_t num_samples, int64_t num_threads) {
  const double tiles = std::floor(double(num_samples) * double(num_samples) / (32 * std::max(features, 1.0) * kTileSamples));
  const double block = kTileSamples * std::max(tiles, std::ceil(std::sqrt(kTilesAThread * double(num_threads))));
  return tiles < kBlockTiles || 2 * block >= num_samples ? num_samples : static_cast<int64_t>(block);
}

// gram [N, N], from layers of N samples, on up to num_threads threads; the rest as in sum_tiles.
template <class T, class Source, class Parallel>
bool gram(const std::vector<Layer<Source>>& layers, int64_t num_samples, InstructionSet set, Parallel&& parallel,
          int64_t num_threads, T* result) {
  const Kernels<T, Source>& kernels = kernels_for<Kernels<T, Source>>(set);
  const int64_t block = block_samples(num_features(layers), num_samples, num_threads);
  const Plan plan = plan_of<T>(layers, num_samples, kernels.panel, block, num_threads);
  return sum_tiles(layers, plan, kernels, parallel, num_threads, [&](const Tile& tile, const Sums<T>& sums) {
    kernels.write_tile(sums, tile, num_samples, result);
  });
}

}  // namespace sgdkern
