// sums [samples, samples] += rows [samples, features] columns [samples, features]^T for a tile that a block owns, by
// matrix instructions, one stage of 128 bytes of features a time.
//
// Stage    both operands as [sample, 128 bytes]. The eight 16-byte chunks of a sample are permuted by its number, so
//          that the eight rows that are read, or written, at a time lie in different banks.
// Numerics the matrix instructions add in float32 but truncate (Fasi, Higham, Mikaitis, Pranesh, PeerJ Comput. Sci. 7
//          e330, 2021), which drifts: 784 positive terms, eight a time, lose 28 units in the last place. So they add up at most
//          16 (TF32) or 32 (16-bit) features, which ordinary, rounded additions sum: Ootomo and Yokota, IJHPCA 36(4),
//          2022, found the same.
// float32  is split in two TF32 numbers, x = big + small; big big' + big small' + small big' is kept, small small' (at
//          most 2^-22 of the product) is not. 2^-23 of x is lost at most, small being cut to 11 bits. Where |x| < 2^-103,
//          small has fewer; where |x| >= (2 - 2^-11) 2^127 or infinite, small is not finite, and the result NaN.
//
// Include device.cuh, or its stand-in, first.
#pragma once

#include <cstdint>

namespace sgdkern {

constexpr int kRowBytes = 128;  // of a sample in a stage
constexpr int kChunkBytes = 16;
constexpr int kChunks = kRowBytes / kChunkBytes;

// A block's tile: warps [kWarpRows, kWarpColumns], each of kRowBlocks x kColumnBlocks matrix instructions.
template <int kRowBlocks_, int kColumnBlocks_, int kWarpRows, int kWarpColumns_>
struct Tile {
  static constexpr int kRowBlocks = kRowBlocks_, kColumnBlocks = kColumnBlocks_, kWarpColumns = kWarpColumns_;
  static constexpr int kSamples = 16 * kRowBlocks * kWarpRows;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static constexpr int kOperandBytes = kSamples * kRowBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static_assert(kSamples == 8 * kColumnBlocks * kWarpColumns && kColumnBlocks % 2 == 0);

  static __device__ unsigned warp_row() { return threadIdx.x / 32 / kWarpColumns * 16 * kRowBlocks; }
  static __device__ unsigned warp_column() { return threadIdx.x / 32 % kWarpColumns * 8 * kColumnBlocks; }

  // Where this thread's number [i][j][k] of a tile's sums lies in the tile.
  static __device__ unsigned row(int i, int k) { return warp_row() + 16u * i + threadIdx.x % 32 / 4 + k / 2 * 8; }
  static __device__ unsigned column(int j, int k) { return warp_column() + 8u * j + threadIdx.x % 4 * 2 + k % 2; }
};

using SmallTile = Tile<2, 4, 2, 2>;  // 64 samples, 128 threads
using LargeTile = Tile<4, 4, 2, 4>;  // 128 samples, 256 threads

template <class Product, class Tile>
struct Sums {
  typename Product::Sum value[Tile::kRowBlocks][Tile::kColumnBlocks][4];
};

// Calls body(i, j, k) for each of this thread's numbers of a tile.
template <class Tile, class Body>
__device__ inline void each_number(const Body& body) {
#pragma unroll
  for (int i = 0; i < Tile::kRowBlocks; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnBlocks; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) body(i, j, k);
    }
  }
}

// Where a chunk of a row lies in an operand. A lane reads 8 bytes of doubles: half a warp four rows of two chunks.
template <class Element>
__device__ inline unsigned chunk_place(unsigned row, unsigned chunk) {
  const unsigned turn = sizeof(Element) == 8 ? row % 4 * 2 : row % 8;
  return row * kRowBytes + (chunk ^ turn) * kChunkBytes;
}

// Reads fragments of an operand [row, 128 bytes]. A left one has rows [row, row + 16), chunks [chunk, chunk + 2); right
// ones, two at a time, rows [row, row + 8) and [row + 8, row + 16).
template <class Element>
struct Rows {
  const char* operand;

  __device__ void left(uint32_t (&fragment)[4], unsigned row, unsigned chunk) const {
    const unsigned lane = threadIdx.x % 32;
    load_blocks(fragment, operand + chunk_place<Element>(row + lane % 16, chunk + lane / 16));
  }
  __device__ void right(uint32_t (&first)[2], uint32_t (&second)[2], unsigned row, unsigned chunk) const {
    const unsigned lane = threadIdx.x % 32;
    uint32_t blocks[4];
    load_blocks(blocks, operand + chunk_place<Element>(row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
    first[0] = blocks[0], first[1] = blocks[1], second[0] = blocks[2], second[1] = blocks[3];
  }
  // Of doubles: this lane's element of eight rows.
  __device__ Element element(unsigned row, unsigned chunk) const {
    const unsigned lane = threadIdx.x % 32;
    const char* place = operand + chunk_place<Element>(row + lane / 4, chunk + lane % 4 / 2);
    return reinterpret_cast<const Element*>(place)[lane % 2];
  }
};

__device__ inline void split(uint32_t bits, uint32_t& big, uint32_t& small) {
  const float value = __uint_as_float(bits), nearest = nearest_tf32(value);
  big = __float_as_uint(nearest);
  small = __float_as_uint(value - nearest) & 0xffffe000;  // of the exact rest, what a TF32 number holds
}

// Each product: what its operands are in shared memory (Element), what it sums in, its fragments of kStep chunks.
struct CompensatedTf32 {
  using Element = float;
  using Sum = float;
  static constexpr int kStep = 2;
  struct Left {
    uint32_t big[4], small[4];
  };
  struct Right {
    uint32_t big[2], small[2];
  };

  template <class Operand>
  static __device__ Left left(const Operand& operand, unsigned row, unsigned chunk) {
    uint32_t bits[4];
    operand.left(bits, row, chunk);
    Left left;
    for (int k = 0; k < 4; ++k) split(bits[k], left.big[k], left.small[k]);
    return left;
  }
  template <class Operand>
  static __device__ void right(const Operand& operand, unsigned row, unsigned chunk, Right& first, Right& second) {
    uint32_t bits[2][2];
    operand.right(bits[0], bits[1], row, chunk);
    for (int k = 0; k < 2; ++k) split(bits[0][k], first.big[k], first.small[k]);
    for (int k = 0; k < 2; ++k) split(bits[1][k], second.big[k], second.small[k]);
  }
  static __device__ void add(float (&sums)[4], const Left& left, const Right& right) {
    float part[4] = {0, 0, 0, 0};
    multiply_tf32(part, left.small, right.big);
    multiply_tf32(part, left.big, right.small);
    multiply_tf32(part, left.big, right.big);
    for (int k = 0; k < 4; ++k) sums[k] += part[k];
  }
};

// Two steps of matrix instructions, the sum of which is added up: TF32, and the 16-bit types.
template <class Element_>
struct Plain {
  using Element = Element_;
  using Sum = float;
  static constexpr int kStep = 4;
  struct Left {
    uint32_t bits[2][4];
  };
  struct Right {
    uint32_t bits[2][2];
  };

  static __device__ void round(uint32_t& bits) {
    if constexpr (sizeof(Element) == 4) bits = __float_as_uint(nearest_tf32(__uint_as_float(bits)));
  }
  template <class Operand>
  static __device__ Left left(const Operand& operand, unsigned row, unsigned chunk) {
    Left left;
    for (int h = 0; h < 2; ++h) {
      operand.left(left.bits[h], row, chunk + 2 * h);
      for (int k = 0; k < 4; ++k) round(left.bits[h][k]);
    }
    return left;
  }
  template <class Operand>
  static __device__ void right(const Operand& operand, unsigned row, unsigned chunk, Right& first, Right& second) {
    for (int h = 0; h < 2; ++h) {
      operand.right(first.bits[h], second.bits[h], row, chunk + 2 * h);
      for (int k = 0; k < 2; ++k) round(first.bits[h][k]), round(second.bits[h][k]);
    }
  }
  static __device__ void add(float (&sums)[4], const Left& left, const Right& right) {
    float part[4] = {0, 0, 0, 0};
    for (int h = 0; h < 2; ++h) {
      if constexpr (sizeof(Element) == 4) {
        multiply_tf32(part, left.bits[h], right.bits[h]);
      } else {
        multiply_16_bit(Element{}, part, left.bits[h], right.bits[h]);
      }
    }
    for (int k = 0; k < 4; ++k) sums[k] += part[k];
  }
};

struct Float64 {
  using Element = double;
  using Sum = double;
  static constexpr int kStep = 2;
  struct Left {
    double value[2];
  };
  struct Right {
    double value;
  };

  template <class Operand>
  static __device__ Left left(const Operand& operand, unsigned row, unsigned chunk) {
    return {{operand.element(row, chunk), operand.element(row + 8, chunk)}};
  }
  template <class Operand>
  static __device__ void right(const Operand& operand, unsigned row, unsigned chunk, Right& first, Right& second) {
    first.value = operand.element(row, chunk), second.value = operand.element(row + 8, chunk);
  }
  static __device__ void add(double (&sums)[4], const Left& left, const Right& right) {
    multiply_float64(sums, left.value, right.value);
  }
};

// One stage: sums += rows columns^T.
template <class Product, class Tile, class Left, class Right>
__device__ inline void add_stage(const Left& rows, const Right& columns, Sums<Product, Tile>& sums) {
#pragma unroll 1  // unrolled, the compensated product needs more registers than there are
  for (unsigned chunk = 0; chunk < kChunks; chunk += Product::kStep) {
    typename Product::Right right[Tile::kColumnBlocks];
#pragma unroll
    for (int j = 0; j < Tile::kColumnBlocks; j += 2) {
      Product::right(columns, Tile::warp_column() + 8u * j, chunk, right[j], right[j + 1]);
    }
#pragma unroll
    for (int i = 0; i < Tile::kRowBlocks; ++i) {
      const typename Product::Left left = Product::left(rows, Tile::warp_row() + 16u * i, chunk);
#pragma unroll
      for (int j = 0; j < Tile::kColumnBlocks; ++j) Product::add(sums.value[i][j], left, right[j]);
    }
  }
}

}  // namespace sgdkern
