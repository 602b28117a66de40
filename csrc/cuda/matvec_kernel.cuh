// y [M] of a linear layer's part of G v: y_m = d_m^T V a_m, rows a_m of A [M, I], d_m of D [M, O], V [O, I].
//
// Work     M * O * I multiply-adds, by matrix instructions: a product [M, I] [O, I]^T, both with features side by side.
// Traffic  A V^T, [M, O], is never stored: a tile of it is multiplied with D while in registers, and its rows are summed.
// Tiling   a block owns 64 rows x 64 outputs; a stage is 128 bytes of features, kStages - 1 copies ahead. It leaves the 64
//          rows' sums over its outputs in `parts`, which `sum_parts` adds up.
// Numerics as in tile_product.cuh; sums over features, then outputs, in order: bitwise repeatable.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "gram_kernel.cuh"

namespace sgdkern {

// parts [tiles of outputs, M]
template <class Product>
__global__ void __launch_bounds__(SmallTile::kThreads, (kMostResident<Product, SmallTile>))
    matvec_kernel(Factor<typename Product::Element> inputs, Factor<typename Product::Element> vector,
                  Factor<typename Product::Element> output_grads, int64_t num_rows, typename Product::Sum* parts) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  constexpr int64_t kSide = SmallTile::kSamples, kDepth = kRowBytes / sizeof(Element);
  constexpr int kSums = 4 * SmallTile::kWarpColumns;  // of a row, a thread each
  char* const stages = shared_memory();
  const int64_t num_outputs = output_grads.features, output_tiles = num_outputs > kSide ? (num_outputs + kSide - 1) / kSide : 1;
  const int64_t row0 = blockIdx.x / output_tiles * kSide, tile = blockIdx.x % output_tiles, output0 = tile * kSide;
  const int64_t num_stages = (inputs.features + kDepth - 1) / kDepth;

  const auto load = [&](int64_t stage) {
    if (stage < num_stages) {
      char* const rows = stages + stage % kStages * SmallTile::kStageBytes;
      load_operand<SmallTile>(inputs, Consecutive{row0, num_rows}, stage * kDepth, rows);
      load_operand<SmallTile>(vector, Consecutive{output0, num_outputs}, stage * kDepth, rows + SmallTile::kOperandBytes);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);
  Sums<Product, SmallTile> sums = {};
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load(stage + kStages - 1);
    const char* const rows = stages + stage % kStages * SmallTile::kStageBytes;
    add_stage(Rows<Element>{rows}, Rows<Element>{rows + SmallTile::kOperandBytes}, sums);
  }

  Sum row_sums[SmallTile::kRowBlocks][2] = {};
  each_number<SmallTile>([&](int i, int j, int k) {
    const int64_t row = row0 + SmallTile::row(i, k), output = output0 + SmallTile::column(j, k);
    if (row < num_rows && output < num_outputs) {
      row_sums[i][k / 2] += sums.value[i][j][k] * output_grads.data[row * output_grads.stride + output];
    }
  });
  __syncthreads();  // the stages are free
  Sum* const shared = reinterpret_cast<Sum*>(stages);
  const unsigned column = threadIdx.x / 32 % SmallTile::kWarpColumns * 4 + threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < SmallTile::kRowBlocks; ++i) {
    for (int half = 0; half < 2; ++half) shared[SmallTile::row(i, 2 * half) * kSums + column] = row_sums[i][half];
  }
  __syncthreads();
  if (threadIdx.x < kSide && row0 + threadIdx.x < num_rows) {
    Sum sum = 0;
    for (int at = 0; at < kSums; ++at) sum += shared[threadIdx.x * kSums + at];
    parts[tile * num_rows + row0 + threadIdx.x] = sum;
  }
}

}  // namespace sgdkern
