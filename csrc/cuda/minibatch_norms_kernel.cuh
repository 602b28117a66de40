// norms [M] of minibatches' summed gradients: the sum of all entries of sum over layers of (A A^T + c) * (D D^T), with the
// rows A [B, I] and D [B, O] of a minibatch's samples: K's blocks without K.
//
// Work     B (B + 1) / 2 * sum(I + O) multiply-adds a minibatch, in tiles of 64 x 64 on and below the diagonal.
// Traffic  rows are gathered into shared memory, and never stored otherwise; a tile leaves one number in `parts`, which
//          `sum_parts` adds up.
// Tiling   a block owns one tile of one minibatch; its queue of stages runs through features, factors and layers, as in
//          gram_kernel.cuh. Minibatches much below 64 samples leave most of a tile idle.
// Numerics see tile_product.cuh; entries below the diagonal count twice. Sums run over layers, a thread's entries, threads,
//          then tiles, in order: bitwise repeatable.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "gram_kernel.cuh"

namespace sgdkern {

// Members of a minibatch; numbers that are no sample's count as zeros.
struct Members {
  const int64_t* indices;  // [B]
  int64_t first, size, num_samples;

  __device__ int64_t operator()(unsigned row) const {
    if (first + row >= size) return -1;
    const int64_t sample = indices[first + row];
    return sample < num_samples ? sample : -1;
  }
};

// parts [tiles, M]; added to what is there unless `first`.
template <class Product>
__global__ void __launch_bounds__(SmallTile::kThreads, (kMostResident<Product, SmallTile>))
    minibatch_norms_kernel(const __grid_constant__ Layers<typename Product::Element> layers, const int64_t* indices,
                           int64_t num_minibatches, int64_t size, int64_t num_samples, bool first,
                           typename Product::Sum* parts) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  constexpr int64_t kSide = SmallTile::kSamples;
  char* const stages = shared_memory();
  const int64_t side = (size + kSide - 1) / kSide, tiles = triangle(side);
  const int64_t tile = blockIdx.x % tiles, minibatch = blockIdx.x / tiles;
  const int64_t* const members = indices + minibatch * size;

  Cursor<Element> next, now;  // of one piece of work: the next would be a grid away
  next.start(tile, layers, side, 1);
  now = next;
  const auto load = [&](int stage) {
    if (next.work < tiles) {
      const Factor<Element>& factor = layers.layer[next.layer].factor[next.factor];
      char* const rows = stages + stage * SmallTile::kStageBytes;
      load_operand<SmallTile>(factor, Members{members, next.row * kSide, size, num_samples}, next.begin, rows);
      if (next.row != next.column) {
        load_operand<SmallTile>(factor, Members{members, next.column * kSide, size, num_samples}, next.begin,
                                rows + SmallTile::kOperandBytes);
      }
      next.advance(layers, side, 1);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);

  Sums<Product, SmallTile> sums = {}, products;
  Sum total = 0;
  for (int stage = 0; now.work < tiles; stage = (stage + 1) % kStages) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load((stage + kStages - 1) % kStages);
    const char* const rows = stages + stage * SmallTile::kStageBytes;
    const char* const columns = now.row == now.column ? rows : rows + SmallTile::kOperandBytes;
    add_stage(Rows<Element>{rows}, Rows<Element>{columns}, sums);
    if (now.ends_factor(layers)) {
      if (now.factor == 0) {
        const Sum constant = layers.layer[now.layer].constant_column ? Sum{1} : Sum{0};
        each_number<SmallTile>([&](int i, int j, int k) { products.value[i][j][k] = sums.value[i][j][k] + constant; });
      } else {
        each_number<SmallTile>([&](int i, int j, int k) {
          const int64_t m = now.row * kSide + SmallTile::row(i, k), n = now.column * kSide + SmallTile::column(j, k);
          const Sum times = m < size && n <= m ? n < m ? Sum{2} : Sum{1} : Sum{0};
          if (times != 0) total += times * products.value[i][j][k] * sums.value[i][j][k];
        });
      }
      sums = {};
    }
    now.advance(layers, side, 1);
  }

  __syncthreads();  // the stages are free
  Sum* const totals = reinterpret_cast<Sum*>(stages);
  totals[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    Sum& part = parts[tile * num_minibatches + minibatch];
    Sum sum = first ? Sum{0} : part;
    for (int thread = 0; thread < SmallTile::kThreads; ++thread) sum += totals[thread];
    part = sum;
  }
}

}  // namespace sgdkern
