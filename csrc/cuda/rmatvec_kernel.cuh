// V [O, I], a linear layer's part of G^T w: V = sum over m of w_m d_m a_m^T, rows a_m of A [M, I], d_m of D [M, O].
//
// Work     M * O * I multiply-adds, by matrix instructions: a product of D^T and A, both with rows side by side.
// Traffic  w * D is never stored: d_m is multiplied with w_m as it is read from shared memory.
// Tiling   a block owns 64 outputs x 64 inputs of V and a share of the rows, the fewer the tiles the smaller; `sum_parts`
//          adds up the shares. A stage is 8 KiB of each operand, [row, 64 columns], kStages - 1 copies ahead; a row's chunks
//          are permuted by its number, so that the four rows that a fragment needs lie in different banks.
// Numerics as in tile_product.cuh, w_m d_m being rounded; sums over rows, then shares, in order: bitwise repeatable on one
//          kind of GPU.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "gram_kernel.cuh"

namespace sgdkern {

// Reads fragments of an operand [k, 64 columns] as if it were turned, multiplied with `weights`, one a k, where there are.
template <class Element>
struct Turned {
  static constexpr unsigned kColumns = SmallTile::kSamples, kPerChunk = kChunkBytes / sizeof(Element);
  static constexpr unsigned kRowChunks = kColumns / kPerChunk;
  const char* operand;
  const Element* weights;
  int64_t num_weights;

  // The place of a chunk of row k: of four rows each two chunks, all 32 banks once.
  static __device__ unsigned place(unsigned k, unsigned chunk) {
    return (k * kRowChunks + (chunk ^ k % 4 * 2)) * kChunkBytes;
  }
  __device__ Element at(unsigned k, unsigned column) const {
    const char* chunk = operand + place(k, column / kPerChunk);
    const Element value = reinterpret_cast<const Element*>(chunk)[column % kPerChunk];
    return !weights ? value : k < num_weights ? weights[k] * value : Element{0};
  }

  __device__ void left(uint32_t (&fragment)[4], unsigned row, unsigned chunk) const {
    for (unsigned k = 0; k < 4; ++k) {
      fragment[k] = __float_as_uint(at(chunk * 4 + threadIdx.x % 4 + k / 2 * 4, row + threadIdx.x % 32 / 4 + k % 2 * 8));
    }
  }
  __device__ void right(uint32_t (&first)[2], uint32_t (&second)[2], unsigned row, unsigned chunk) const {
    for (unsigned k = 0; k < 2; ++k) {
      const unsigned depth = chunk * 4 + threadIdx.x % 4 + k * 4, column = row + threadIdx.x % 32 / 4;
      first[k] = __float_as_uint(at(depth, column));
      second[k] = __float_as_uint(at(depth, column + 8));
    }
  }
  __device__ Element element(unsigned row, unsigned chunk) const {
    return at(chunk * 2 + threadIdx.x % 4, row + threadIdx.x % 32 / 4);
  }
};

// parts [num_parts, O, I]
template <class Product>
__global__ void __launch_bounds__(SmallTile::kThreads, (kMostResident<Product, SmallTile>))
    rmatvec_kernel(Factor<typename Product::Element> inputs, Factor<typename Product::Element> output_grads,
                   const typename Product::Element* weights, int64_t num_rows, int64_t num_parts,
                   typename Product::Sum* parts) {
  using Element = typename Product::Element;
  using Columns = Turned<Element>;
  constexpr int64_t kSide = SmallTile::kSamples, kDepth = kRowBytes / sizeof(Element);
  static_assert(kDepth * kSide * sizeof(Element) == SmallTile::kOperandBytes);
  char* const stages = shared_memory();
  const int64_t num_inputs = inputs.features, num_outputs = output_grads.features;
  const int64_t input_tiles = (num_inputs + kSide - 1) / kSide, output_tiles = (num_outputs + kSide - 1) / kSide;
  const int64_t block = blockIdx.x, part = block / input_tiles / output_tiles;
  const int64_t output0 = block / input_tiles % output_tiles * kSide, input0 = block % input_tiles * kSide;
  const int64_t all_stages = (num_rows + kDepth - 1) / kDepth;
  const int64_t begin = all_stages * part / num_parts, end = all_stages * (part + 1) / num_parts;

  const auto load = [&](int64_t stage) {
    if (stage < end) {
      char* const left = stages + stage % kStages * SmallTile::kStageBytes;
      const auto load_columns = [&](const Factor<Element>& factor, int64_t first, char* operand) {
        load_rows<kDepth, Columns::kRowChunks, SmallTile::kThreads>(
            factor, Consecutive{stage * kDepth, num_rows}, first, operand,
            [](unsigned k, unsigned chunk) { return Columns::place(k, chunk); });
      };
      load_columns(output_grads, output0, left);
      load_columns(inputs, input0, left + SmallTile::kOperandBytes);
    }
    commit_copies();
  };
  for (int64_t stage = begin; stage < begin + kStages - 1; ++stage) load(stage);
  Sums<Product, SmallTile> sums = {};
  for (int64_t stage = begin; stage < end; ++stage) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load(stage + kStages - 1);
    const char* const left = stages + stage % kStages * SmallTile::kStageBytes;
    add_stage(Columns{left, weights + stage * kDepth, num_rows - stage * kDepth},
              Columns{left + SmallTile::kOperandBytes, nullptr, 0}, sums);
  }
  each_number<SmallTile>([&](int i, int j, int k) {
    const int64_t output = output0 + SmallTile::row(i, k), input = input0 + SmallTile::column(j, k);
    if (output < num_outputs && input < num_inputs) {
      parts[(part * num_outputs + output) * num_inputs + input] = sums.value[i][j][k];
    }
  });
}

}  // namespace sgdkern
