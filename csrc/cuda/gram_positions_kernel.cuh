// K [N, N] of a layer that is used at T positions: K_nm = sum over positions t, s of (a_nt . a_ms + c) (b_nt . b_ms), with
// inputs A [N * T, I] and output gradients B [N * T, O], c = 1 where the layer has a bias. As gram_kernel.cuh over rows
// (n, t), but what is written of a tile are the sums of its T x T blocks.
//
// Work     N T (N T + 1) / 2 * (I + O) multiply-adds, and an addition for each pair of rows.
// Traffic  a tile reads its rows and columns of both factors once; of K an entry is written once a tile that has part of
//          it, which is once where samples lie within tiles. No N T x N T memory.
// Tiling   rows come in groups of whole samples; a block owns a pair of groups, hence a block of K, and takes its tiles one
//          after the other. Where few positions make a sample a group is one tile. A tile's product lies in shared memory
//          for its blocks to be summed: down the columns in place, then along the rows.
// Pipeline one queue of stages runs through features, factors, tiles and pairs of groups, as in gram_kernel.cuh.
// Numerics see tile_product.cuh. Sums run over features, t, s, then tiles, in order: bitwise repeatable.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "gram_kernel.cuh"

namespace sgdkern {

// How rows (n, t) are shared among groups of whole samples.
struct Groups {
  int64_t num_samples, num_positions;
  int64_t samples;  // in each group but perhaps the last

  __host__ __device__ int64_t count() const { return (num_samples + samples - 1) / samples; }
  __host__ __device__ int64_t first_row(int64_t group) const { return group * samples * num_positions; }
  __host__ __device__ int64_t end_row(int64_t group) const {
    return (group + 1 < count() ? (group + 1) * samples : num_samples) * num_positions;
  }
};

// The stages of a block in the order of its work.
template <class Tile, class Element>
struct PositionCursor {
  static constexpr int64_t kDepth = kRowBytes / sizeof(Element);  // features
  int64_t pair, row, column;  // of groups; the tile's first row in each factor
  int64_t end_row, end_column, begin;  // of the groups; first feature
  int row_group, column_group, factor;

  __device__ void start(int64_t at, const Groups& groups) {
    pair = at, factor = 0, begin = 0;
    if (at >= triangle(groups.count())) return;
    const TilePlace place = tile_at(at, groups.count());
    row_group = place.row, column_group = place.column;
    row = groups.first_row(row_group), end_row = groups.end_row(row_group);
    column = groups.first_row(column_group), end_column = groups.end_row(column_group);
  }
  __device__ bool ends_factor(const Layer<Element>& layer) const { return begin + kDepth >= layer.factor[factor].features; }
  __device__ void advance(const Layer<Element>& layer, const Groups& groups) {
    if (!ends_factor(layer)) {
      begin += kDepth;
      return;
    }
    begin = 0;
    if (++factor < 2) return;
    factor = 0, column += Tile::kSamples;
    if (column < end_column && (row_group != column_group || column <= row)) return;
    column = groups.first_row(column_group), row += Tile::kSamples;
    if (row >= end_row) start(pair + gridDim.x, groups);
  }
};

// Where a number of a tile's product lies: eight rows of a matrix instruction's sums in different banks, two by two.
template <class Tile>
__device__ inline unsigned product_place(unsigned row, unsigned column) {
  return row * Tile::kSamples + (column ^ row % 4 * 8);
}

// The samples that have rows in a tile, and which rows.
struct SamplesOfTile {
  int64_t first, begin, end, positions;  // sample; rows of all samples

  __device__ SamplesOfTile(int64_t begin, int64_t side, int64_t end_of_group, int64_t positions)
      : first(begin / positions), begin(begin), end(begin + side < end_of_group ? begin + side : end_of_group),
        positions(positions) {}
  __device__ unsigned count() const { return static_cast<unsigned>((end - 1) / positions - first + 1); }
  __device__ bool begins(unsigned index) const { return (first + index) * positions >= begin; }
  __device__ bool ends(unsigned index) const { return (first + index + 1) * positions <= end; }
  __device__ unsigned first_row(unsigned index) const {
    return begins(index) ? static_cast<unsigned>((first + index) * positions - begin) : 0;
  }
  __device__ unsigned end_row(unsigned index) const {
    return static_cast<unsigned>((ends(index) ? (first + index + 1) * positions : end) - begin);
  }
};

// K += the sums of a tile's T x T blocks, and the mirror image where they are all there.
template <class Tile, class Sum>
__device__ inline void add_blocks(Sum* products, const SamplesOfTile& rows, const SamplesOfTile& columns, bool mirrored,
                                  int64_t num_samples, Sum* gram) {
  for (unsigned at = threadIdx.x; at < rows.count() * Tile::kSamples; at += Tile::kThreads) {
    const unsigned n = at / Tile::kSamples, column = at % Tile::kSamples, first = rows.first_row(n), end = rows.end_row(n);
    Sum sum = 0;
    for (unsigned row = first; row < end; ++row) sum += products[product_place<Tile>(row, column)];
    products[product_place<Tile>(first, column)] = sum;  // where only this thread reads
  }
  __syncthreads();
  for (unsigned at = threadIdx.x; at < rows.count() * columns.count(); at += Tile::kThreads) {
    const unsigned i = at / columns.count(), j = at % columns.count();
    const int64_t n = rows.first + i, m = columns.first + j;
    if (n < m) continue;  // the other half is the mirror image
    Sum sum = 0;
    for (unsigned column = columns.first_row(j); column < columns.end_row(j); ++column) {
      sum += products[product_place<Tile>(rows.first_row(i), column)];
    }
    if (n == m && mirrored) sum += sum;
    Sum& entry = gram[n * num_samples + m];
    if (!rows.begins(i) || !columns.begins(j)) sum += entry;
    entry = sum;
    if (rows.ends(i) && columns.ends(j)) gram[m * num_samples + n] = sum;
  }
}

template <class Product, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, (kMostResident<Product, Tile>))
    gram_positions_kernel(const __grid_constant__ Layer<typename Product::Element> layer, Groups groups,
                          typename Product::Sum* gram) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  char* const stages = shared_memory();
  Sum* const products = reinterpret_cast<Sum*>(stages + kStages * Tile::kStageBytes);
  const int64_t num_pairs = triangle(groups.count());

  PositionCursor<Tile, Element> next, now;
  next.start(blockIdx.x, groups);
  now = next;
  const auto load = [&](int stage) {
    if (next.pair < num_pairs) {
      const Factor<Element>& factor = layer.factor[next.factor];
      char* const rows = stages + stage * Tile::kStageBytes;
      load_operand<Tile>(factor, Consecutive{next.row, next.end_row}, next.begin, rows);
      if (next.row != next.column) {
        load_operand<Tile>(factor, Consecutive{next.column, next.end_column}, next.begin, rows + Tile::kOperandBytes);
      }
      next.advance(layer, groups);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);

  Sums<Product, Tile> sums = {}, of_inputs;
  for (int stage = 0; now.pair < num_pairs; stage = (stage + 1) % kStages) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load((stage + kStages - 1) % kStages);
    const char* const rows = stages + stage * Tile::kStageBytes;
    const char* const columns = now.row == now.column ? rows : rows + Tile::kOperandBytes;
    add_stage(Rows<Element>{rows}, Rows<Element>{columns}, sums);
    if (now.ends_factor(layer)) {
      if (now.factor == 0) {
        const Sum constant = layer.constant_column ? Sum{1} : Sum{0};
        each_number<Tile>([&](int i, int j, int k) { of_inputs.value[i][j][k] = sums.value[i][j][k] + constant; });
      } else {
        each_number<Tile>([&](int i, int j, int k) {
          products[product_place<Tile>(Tile::row(i, k), Tile::column(j, k))] =
              sums.value[i][j][k] * of_inputs.value[i][j][k];
        });
        __syncthreads();
        const int64_t side = Tile::kSamples, positions = groups.num_positions;
        add_blocks<Tile>(products, SamplesOfTile(now.row, side, now.end_row, positions),
                         SamplesOfTile(now.column, side, now.end_column, positions), now.row != now.column,
                         groups.num_samples, gram);
      }
      sums = {};
    }
    now.advance(layer, groups);
  }
}

}  // namespace sgdkern
