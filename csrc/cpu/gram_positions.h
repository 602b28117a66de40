// K [N, N] of a layer that is used at T positions: K_nm = sum over positions t, s of (a_nt . a_ms + c) (b_nt . b_ms), with
// inputs A [N * T, I] and output gradients B [N * T, O], c = 1 where the layer has a bias. As gram.h over rows (n, t), but
// what is written of a tile are the sums of its T x T blocks.
//
// Work     N T (N T + 1) / 2 * (I + O) multiply-adds, and an addition for each pair of rows.
// Traffic  as in gram.h: factors read and packed once, K written once. No N T x N T memory: A A^T of a tile lies in a
//          thread's buffer, B B^T is multiplied with it while still in registers, the blocks are summed in the second-level
//          cache.
// Tiling   rows are packed in groups of whole samples, each of which begins a panel; the rows that fill its last panel are
//          zeros, and never summed. A thread owns a pair of groups, hence a block of K: no two threads share an entry. Where
//          few positions make a sample a group is one tile; else it is several, and one sample where that wastes little.
// Numerics sums run over features as in gram.h, then over t, over s (in float64) and over the tiles of a pair of groups, in
//          order: for a given instruction set a result depends neither on the number of threads nor on the run.
// See docs/decisions/0008-positions-pair-by-pair.md.
#pragma once

#include "gram.h"

namespace sgdkern {

// How rows are shared among groups, and a group's among tiles.
struct Groups {
  int64_t num_samples, num_positions;
  int64_t samples;  // in each group but perhaps the last
  int64_t rows;     // of a group in memory: whole panels
  int64_t tile;     // rows of a tile: whole panels

  int64_t count() const { return (num_samples + samples - 1) / samples; }
  int64_t samples_of(int64_t group) const { return std::min(samples, num_samples - group * samples); }
};

// At least a tile of rows, and of what is multiplied at most a ninth zeros, where there are as many samples.
inline Groups groups_of(int64_t num_samples, int64_t num_positions, int64_t panel) {
  // Few rows: smaller tiles, so that every thread has some, as in gram.h.
  const int64_t most = num_samples * num_positions < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;
  const auto padded = [&](int64_t samples) { return (samples * num_positions + panel - 1) / panel * panel; };
  int64_t samples = std::clamp<int64_t>(most / num_positions, 1, num_samples);
  while (samples < num_samples && padded(samples) * 8 > samples * num_positions * 9) ++samples;
  const int64_t rows = padded(samples), tiles = (rows + most - 1) / most;
  return {num_samples, num_positions, samples, rows, (rows / panel + tiles - 1) / tiles * panel};
}

template <class T>
struct PackedLayer {
  T* inputs;        // [rows / kPanel, I, kPanel]
  T* output_grads;  // [rows / kPanel, O, kPanel]
  int64_t in_features, out_features;
  bool constant_column;
};

template <class T>
struct PositionKernels {
  void (*gram_of_groups)(const PackedLayer<T>& layer, const Groups& groups, int64_t row_group, int64_t column_group,
                         Sums<T>& sums, T* gram);
};

#define SGDKERN_KERNELS "gram_positions_tile.inl"
#include "instruction_sets.inl"

// Packs a group's rows, panel by panel.
template <class T, class Source>
void pack_group(const Kernels<T, Source>& kernels, const Layer<Source>& layer, const Groups& groups, int64_t group,
                const PackedLayer<T>& packed) {
  const int64_t first = group * groups.samples * groups.num_positions;
  const int64_t count = groups.samples_of(group) * groups.num_positions;
  for (int64_t row = 0; row < count; row += kernels.panel) {
    const int64_t from = first + row, to = group * groups.rows + row, some = std::min(kernels.panel, count - row);
    kernels.pack(layer.inputs + from * layer.inputs_stride, layer.inputs_stride, some, layer.in_features,
                 packed.inputs + to * layer.in_features);
    kernels.pack(layer.output_grads + from * layer.output_grads_stride, layer.output_grads_stride, some,
                 layer.out_features, packed.output_grads + to * layer.out_features);
  }
}

// result [N, N], from a layer of N * T rows; `parallel` and what is returned as in gram.h.
template <class T, class Source, class Parallel>
bool gram_positions(const Layer<Source>& layer, int64_t num_samples, int64_t num_positions, InstructionSet set,
                    Parallel&& parallel, T* result) {
  if (num_samples == 0 || num_positions == 0) {
    std::fill(result, result + num_samples * num_samples, T{0});
    return true;
  }
  const Kernels<T, Source>& kernels = kernels_for<Kernels<T, Source>>(set);
  const Groups groups = groups_of(num_samples, num_positions, kernels.panel);
  const int64_t count = groups.count();
  Layout layout;
  const int64_t places[] = {layout.place(count * groups.rows, layer.in_features, sizeof(T)),
                            layout.place(count * groups.rows, layer.out_features, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  const PackedLayer<T> packed{reinterpret_cast<T*>(workspace->memory() + places[0]),
                              reinterpret_cast<T*>(workspace->memory() + places[1]), layer.in_features,
                              layer.out_features, layer.constant_column};
  parallel(count, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) pack_group(kernels, layer, groups, group, packed);
  });
  std::vector<std::array<int64_t, 2>> pairs;
  for (int64_t i = count; i-- > 0;) {
    for (int64_t j = 0; j <= i; ++j) pairs.push_back({i, j});
  }
  std::atomic<std::size_t> next{0};
  parallel(static_cast<int64_t>(pairs.size()), [&](int64_t, int64_t) {  // each thread takes the next pair, not a share
    const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
    for (std::size_t at; sums && (at = next++) < pairs.size();) {
      kernels_for<PositionKernels<T>>(set).gram_of_groups(packed, groups, pairs[at][0], pairs[at][1], *sums, result);
    }
  });
  Workspace::keep(std::move(workspace));
  return next >= pairs.size();  // else no thread had memory for its sums
}

}  // namespace sgdkern
