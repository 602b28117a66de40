// g_n [outputs, taps] = sum over positions t of b_n[o, t] a_n[t, tap] for some outputs and taps of a layer whose weight is
// used at several positions: the rows of G that gram_kernel.cuh multiplies next (K += G G^T), then overwritten.
//
// Work     N * T * outputs * taps multiply-adds, by matrix instructions: a product [outputs, T] [taps, T]^T a sample.
// Traffic  patches are never stored: what a position sees of a tap is gathered into shared memory, an offset of the tap
//          and one of the position apart, so that stride, dilation and the order of axes are numbers, not code. Each
//          input is gathered (second-level cache) once per tap and tile of outputs.
// Tiling   a block owns 64 outputs x 64 taps of one sample; positions come in stages of 128 bytes, kStages - 1 copies
//          ahead. Neighbouring threads copy neighbouring positions, or channels where those lie side by side.
// Numerics 16-bit numbers are widened to TF32, which holds them exactly; else as in tile_product.cuh.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "gram_kernel.cuh"

namespace sgdkern {

template <class Source>
struct PatchLayer {
  const Source* inputs;        // [N, C, H, W], already padded
  const Source* output_grads;  // [N, O, H', W']
  int64_t input_strides[4], output_strides[4];
  int64_t num_samples, num_outputs, num_taps, num_positions, position_columns;
  int64_t kernel[2], stride[2], dilation[2];

  // Where a tap's number lies from a position's first, and where a position's first lies in a sample.
  __device__ int64_t tap_offset(int64_t tap) const {
    const int64_t j = tap % kernel[1], i = tap / kernel[1] % kernel[0], channel = tap / kernel[1] / kernel[0];
    return channel * input_strides[1] + i * dilation[0] * input_strides[2] + j * dilation[1] * input_strides[3];
  }
  __device__ int64_t input_offset(int64_t position) const {
    const int64_t row = position / position_columns, column = position % position_columns;
    return row * stride[0] * input_strides[2] + column * stride[1] * input_strides[3];
  }
  __device__ int64_t output_offset(int64_t position) const {
    return position / position_columns * output_strides[2] + position % position_columns * output_strides[3];
  }
};

// Some outputs and taps, and the stride of their gradients [N, num_outputs * num_taps].
struct PatchChunk {
  int64_t first_output, num_outputs, first_tap, num_taps, stride;
};

template <class Element>
struct Offsets {
  static constexpr int kDepth = kRowBytes / sizeof(Element);  // positions in a stage
  int64_t output[SmallTile::kSamples], tap[SmallTile::kSamples];
  int64_t output_position[kStages][kDepth], input_position[kStages][kDepth];
};

template <class Product>
constexpr int64_t patch_shared_bytes() {
  return kStages * SmallTile::kStageBytes + sizeof(Offsets<typename Product::Element>);
}

// operand[row, k] = data[rows[row] + positions[k]], zeros from num_rows and num_positions on.
template <class Element, class Source>
__device__ inline void gather_operand(const Source* data, const int64_t* rows, int64_t num_rows, const int64_t* positions,
                                      int64_t num_positions, bool rows_lie_side_by_side, char* operand) {
  constexpr int kDepth = kRowBytes / sizeof(Element), kPerChunk = kChunkBytes / sizeof(Element);
  for (int at = threadIdx.x; at < SmallTile::kSamples * kDepth; at += SmallTile::kThreads) {
    const int row = rows_lie_side_by_side ? at % SmallTile::kSamples : at / kDepth;
    const int k = rows_lie_side_by_side ? at / SmallTile::kSamples : at % kDepth;
    const bool inside = row < num_rows && k < num_positions;
    const Source* source = inside ? data + rows[row] + positions[k] : data;
    Element* target = reinterpret_cast<Element*>(operand + chunk_place<Element>(row, k / kPerChunk)) + k % kPerChunk;
    if constexpr (sizeof(Element) == sizeof(Source)) {
      copy_async<sizeof(Element)>(target, source, inside ? sizeof(Element) : 0);
    } else {
      *target = inside ? widen(*source) : Element{0};
    }
  }
}

template <class Product, class Source>
__global__ void __launch_bounds__(SmallTile::kThreads, (kMostResident<Product, SmallTile>))
    patch_gradients(const __grid_constant__ PatchLayer<Source> layer, PatchChunk chunk, typename Product::Sum* gradients) {
  using Element = typename Product::Element;
  using Table = Offsets<Element>;
  constexpr int kSide = SmallTile::kSamples, kDepth = Table::kDepth;
  char* const stages = shared_memory();
  Table& offsets = *reinterpret_cast<Table*>(stages + kStages * SmallTile::kStageBytes);

  const int64_t tap_tiles = (chunk.num_taps + kSide - 1) / kSide, output_tiles = (chunk.num_outputs + kSide - 1) / kSide;
  const int64_t block = blockIdx.x, sample = block / tap_tiles / output_tiles;
  const int64_t output0 = block / tap_tiles % output_tiles * kSide, tap0 = block % tap_tiles * kSide;
  const int64_t outputs = chunk.num_outputs - output0, taps = chunk.num_taps - tap0;  // more than a tile, perhaps
  const Source* const inputs = layer.inputs + sample * layer.input_strides[0];
  const Source* const output_grads = layer.output_grads + sample * layer.output_strides[0];
  const int64_t num_stages = layer.num_positions > kDepth ? (layer.num_positions + kDepth - 1) / kDepth : 1;

  const auto find_positions = [&](int64_t stage) {  // before the stage is loaded
    const int64_t position = stage * kDepth + threadIdx.x;
    if (threadIdx.x < kDepth && position < layer.num_positions) {
      offsets.output_position[stage % kStages][threadIdx.x] = layer.output_offset(position);
      offsets.input_position[stage % kStages][threadIdx.x] = layer.input_offset(position);
    }
  };
  const auto load = [&](int64_t stage) {
    if (stage < num_stages) {
      char* const rows = stages + stage % kStages * SmallTile::kStageBytes;
      const int64_t left = layer.num_positions - stage * kDepth;
      gather_operand<Element>(output_grads, offsets.output, outputs, offsets.output_position[stage % kStages], left,
                              layer.output_strides[1] == 1, rows);
      gather_operand<Element>(inputs, offsets.tap, taps, offsets.input_position[stage % kStages], left,
                              layer.input_strides[1] == 1, rows + SmallTile::kOperandBytes);
    }
    commit_copies();
  };

  for (int row = threadIdx.x; row < kSide; row += SmallTile::kThreads) {
    offsets.output[row] = (chunk.first_output + output0 + row) * layer.output_strides[1];
    offsets.tap[row] = layer.tap_offset(chunk.first_tap + tap0 + row);
  }
  for (int stage = 0; stage < kStages; ++stage) find_positions(stage);
  __syncthreads();
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);

  Sums<Product, SmallTile> sums = {};
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load(stage + kStages - 1);
    find_positions(stage + kStages);
    const char* const rows = stages + stage % kStages * SmallTile::kStageBytes;
    add_stage(Rows<Element>{rows}, Rows<Element>{rows + SmallTile::kOperandBytes}, sums);
  }
  each_number<SmallTile>([&](int i, int j, int k) {
    const int64_t output = output0 + SmallTile::row(i, k), tap = tap0 + SmallTile::column(j, k);
    if (output < chunk.num_outputs && tap < chunk.num_taps) {
      gradients[sample * chunk.stride + output * chunk.num_taps + tap] = sums.value[i][j][k];
    }
  });
}

}  // namespace sgdkern
