// K [N, N] = sum over layers of (A A^T + c) * (D D^T), elementwise product; A [N, I] the layer's inputs, D [N, O] the
// gradients at its outputs, c = 1 where it has a bias (the constant column of A is folded in, never stored). A layer
// with one factor only adds A A^T: the symmetric rank-k update of explicit gradients.
//
// Work     N (N + 1) / 2 * sum(I + O) multiply-adds: the tiles on and below the diagonal, whose halves are mirrored.
// Traffic  a tile reads its rows and columns of every factor once; K is written once. No N x N temporary, but where there
//          are fewer tiles than a GPU holds: then blocks share a tile's layers, and `sum_parts` adds their parts.
// Tiling   blocks stay (as many as the GPU holds) and take one tile after the other, in bands of kBand rows, so that
//          those at work share rows and columns in the second-level cache. A tile's product A A^T, and D D^T while
//          it comes about, are registers; K's sum over layers, needed once a layer, is shared memory, a place a thread.
// Pipeline one queue of stages runs through features, factors, layers and tiles, kStages - 1 copies (cp.async) ahead:
//          it never drains between two small layers.
// Numerics see tile_product.cuh. Sums run over features, then layers, then parts, in order: bitwise repeatable on one
//          kind of GPU; their number of parts depends on its number of multiprocessors.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
#pragma once

#include "tile_product.cuh"

namespace sgdkern {

constexpr int kStages = 3;
constexpr int kMostLayers = 56;  // in one launch: they travel as kernel arguments, at most 4 KiB
constexpr int64_t kBand = 8;     // tile rows

template <class Element>
struct Factor {
  const Element* data;  // [N, features]
  int64_t features, stride;
  int copy_bytes;  // to which all rows are aligned: 16, 8, 4, or 2 of the 16-bit types
};

template <class Element>
struct Layer {
  Factor<Element> factor[2];  // inputs, output gradients
  int num_factors;
  bool constant_column;
};

template <class Element>
struct Layers {
  Layer<Element> layer[kMostLayers];
  int count;
};

__host__ __device__ constexpr int64_t triangle(int64_t side) { return side * (side + 1) / 2; }

struct TilePlace {
  int row, column;
};

// Tile `index` of those on and below the diagonal of [side, side].
__device__ inline TilePlace tile_at(int64_t index, int64_t side) {
  int64_t row = static_cast<int64_t>((sqrt(8.0 * index + 1.0) - 1.0) / 2.0);  // if rows came one by one; off by one at most
  while (triangle(row) > index) --row;
  while (triangle(row + 1) <= index) ++row;
  const int64_t first = row / kBand * kBand;  // as many tiles lie above a row either way, so the band is right
  const int64_t height = side - first < kBand ? side - first : kBand;
  int64_t rest = index - triangle(first);
  if (rest < first * height) return {int(first + rest % height), int(rest / height)};
  rest -= first * height;
  int64_t down = 0;
  for (; rest > down; ++down) rest -= down + 1;
  return {int(first + down), int(first + rest)};
}

// The stages of a block in the order of its work.
template <class Element>
struct Cursor {
  static constexpr int64_t kDepth = kRowBytes / sizeof(Element);  // features
  int64_t work;  // part * tiles + tile
  int row, column;
  int64_t begin;  // first feature
  int layer, end_layer, factor;

  // Goes to the first stage of a piece of work.
  __device__ void start(int64_t at, const Layers<Element>& layers, int64_t side, int num_parts) {
    const int64_t tiles = triangle(side), part = at / tiles;
    work = at;
    if (part >= num_parts) return;
    const TilePlace place = tile_at(at % tiles, side);
    row = place.row, column = place.column;
    layer = static_cast<int>(part * layers.count / num_parts);
    end_layer = static_cast<int>((part + 1) * layers.count / num_parts);
    factor = 0, begin = 0;
  }
  __device__ bool ends_factor(const Layers<Element>& layers) const {
    return begin + kDepth >= layers.layer[layer].factor[factor].features;
  }
  __device__ void advance(const Layers<Element>& layers, int64_t side, int num_parts) {
    if (!ends_factor(layers)) {
      begin += kDepth;
      return;
    }
    begin = 0;
    if (++factor < layers.layer[layer].num_factors) return;
    factor = 0;
    if (++layer == end_layer) start(work + gridDim.x, layers, side, num_parts);
  }
};

// Starts the copy of kRowChunks chunks, from feature `begin` on, of each of kRows rows, of sample sample_of(row), to where
// place(row, chunk) says; zeros past the last feature, and where the sample is negative.
template <unsigned kRows, unsigned kRowChunks, unsigned kThreads, class Element, class SampleOf, class Place>
__device__ inline void load_rows(const Factor<Element>& factor, const SampleOf& sample_of, int64_t begin, char* operand,
                                 const Place& place) {
  constexpr int kPerChunk = kChunkBytes / sizeof(Element);
  static_assert(kRows * kRowChunks % kThreads == 0);
  // Calls copy(target, source, valid) for this thread's chunks: of their 16 bytes, `valid` are the factor's.
  const auto each_chunk = [&](unsigned at, const auto& copy) {
    const unsigned row = (at + threadIdx.x) / kRowChunks, chunk = (at + threadIdx.x) % kRowChunks;
    const int64_t sample = sample_of(row), feature = begin + chunk * kPerChunk;
    const int64_t left = sample >= 0 ? factor.features - feature : 0;
    const int valid = left <= 0 ? 0 : left < kPerChunk ? static_cast<int>(left * sizeof(Element)) : kChunkBytes;
    copy(operand + place(row, chunk), valid ? factor.data + sample * factor.stride + feature : factor.data,
         valid);
  };
  if (factor.copy_bytes == kChunkBytes) {
#pragma unroll
    for (unsigned at = 0; at < kRows * kRowChunks; at += kThreads) {
      each_chunk(at, [](char* target, const Element* source, int valid) { copy_async<16>(target, source, valid); });
    }
  } else if (factor.copy_bytes >= 4) {
#pragma unroll 1
    for (unsigned at = 0; at < kRows * kRowChunks; at += kThreads) {
      each_chunk(at, [](char* target, const Element* source, int valid) {
        for (int k = 0; k < kChunkBytes; k += 4) {
          const int left = valid - k;
          copy_async<4>(target + k, reinterpret_cast<const char*>(source) + k, left < 0 ? 0 : left < 4 ? left : 4);
        }
      });
    }
  } else {
#pragma unroll 1
    for (unsigned at = 0; at < kRows * kRowChunks; at += kThreads) {
      each_chunk(at, [](char* target, const Element* source, int valid) {
        for (int k = 0; k < kPerChunk; ++k) {
          reinterpret_cast<Element*>(target)[k] = k * int{sizeof(Element)} < valid ? source[k] : Element{};
        }
      });
    }
  }
}

// Samples one after the other.
struct Consecutive {
  int64_t first, num_samples;

  __device__ int64_t operator()(unsigned row) const { return first + row < num_samples ? first + row : -1; }
};

// Features [begin, begin + kDepth) of a tile's samples.
template <class Tile, class Element, class SampleOf>
__device__ inline void load_operand(const Factor<Element>& factor, const SampleOf& sample_of, int64_t begin, char* operand) {
  load_rows<Tile::kSamples, kChunks, Tile::kThreads>(factor, sample_of, begin, operand, [](unsigned row, unsigned chunk) {
    return chunk_place<Element>(row, chunk);
  });
}

// Bytes of shared memory: the stages, and K of the tile.
template <class Product, class Tile>
__host__ __device__ constexpr int64_t shared_bytes() {
  return kStages * Tile::kStageBytes + Tile::kSamples * Tile::kSamples * sizeof(typename Product::Sum);
}

constexpr int64_t kReservedBytes = 1024;  // of shared memory a block (CUDA C++ Programming Guide, compute capability 8.x, 9.0)

// Blocks that a multiprocessor of `bytes` of shared memory holds.
__host__ __device__ constexpr int64_t resident(int64_t bytes, int64_t block_bytes) {
  return bytes < block_bytes + kReservedBytes ? 1 : bytes / (block_bytes + kReservedBytes);
}

// For so many the registers must suffice: those that sm_90 holds, the most.
template <class Product, class Tile>
constexpr int kMostResident = static_cast<int>(resident(228 << 10, shared_bytes<Product, Tile>()));

// gram [parts, N, N], each the sum over a share of the layers; added to what is there unless `first`.
template <class Product, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, (kMostResident<Product, Tile>))
    gram_kernel(const __grid_constant__ Layers<typename Product::Element> layers, int64_t num_samples, int num_parts,
                bool first, typename Product::Sum* gram) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  char* const stages = shared_memory();
  Sum* const totals = reinterpret_cast<Sum*>(stages + kStages * Tile::kStageBytes) + threadIdx.x;
  const int64_t side = (num_samples + Tile::kSamples - 1) / Tile::kSamples;
  const int64_t end_work = triangle(side) * num_parts;

  Cursor<Element> next, now;
  next.start(blockIdx.x, layers, side, num_parts);
  now = next;
  const auto load = [&](int stage) {
    if (next.work < end_work) {
      const Factor<Element>& factor = layers.layer[next.layer].factor[next.factor];
      char* const rows = stages + stage * Tile::kStageBytes;
      load_operand<Tile>(factor, Consecutive{int64_t{next.row} * Tile::kSamples, num_samples}, next.begin, rows);
      if (next.row != next.column) {
        load_operand<Tile>(factor, Consecutive{int64_t{next.column} * Tile::kSamples, num_samples}, next.begin,
                           rows + Tile::kOperandBytes);
      }
      next.advance(layers, side, num_parts);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);

  Sums<Product, Tile> sums = {}, products;
  for (int stage = 0; now.work < end_work; stage = (stage + 1) % kStages) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and all threads are done with the one before
    load((stage + kStages - 1) % kStages);
    const char* const rows = stages + stage * Tile::kStageBytes;
    const char* const columns = now.row == now.column ? rows : rows + Tile::kOperandBytes;
    add_stage(Rows<Element>{rows}, Rows<Element>{columns}, sums);

    if (now.ends_factor(layers)) {
      const Layer<Element>& layer = layers.layer[now.layer];
      if (now.factor + 1 < layer.num_factors) {
        const Sum constant = layer.constant_column ? Sum{1} : Sum{0};
        each_number<Tile>([&](int i, int j, int k) { products.value[i][j][k] = sums.value[i][j][k] + constant; });
      } else {
        const int64_t part = now.work / triangle(side);
        const bool begins = now.layer == part * layers.count / num_parts, ends = now.layer + 1 == now.end_layer;
        const int64_t m0 = int64_t{now.row} * Tile::kSamples, n0 = int64_t{now.column} * Tile::kSamples;
        Sum* const result = gram + part * num_samples * num_samples;
        if (layer.num_factors == 2) {
          each_number<Tile>([&](int i, int j, int k) { sums.value[i][j][k] *= products.value[i][j][k]; });
        }
        each_number<Tile>([&](int i, int j, int k) {
          const int64_t m = m0 + Tile::row(i, k), n = n0 + Tile::column(j, k);
          const bool inside = n <= m && m < num_samples;  // the other half is the mirror image
          Sum& total = totals[((i * Tile::kColumnBlocks + j) * 4 + k) * Tile::kThreads];
          const Sum before = !begins ? total : first || !inside ? Sum{0} : result[m * num_samples + n];
          total = before + sums.value[i][j][k];
          if (ends && inside) {
            result[m * num_samples + n] = total;
            result[n * num_samples + m] = total;
          }
        });
      }
      sums = {};
    }
    now.advance(layers, side, num_parts);
  }
}

constexpr int kSumThreads = 256;

// sum [count] = the sum over parts [parts, count], in order.
template <class Sum>
__global__ void __launch_bounds__(kSumThreads) sum_parts(const Sum* parts, int num_parts, int64_t count, Sum* sum) {
  for (int64_t at = int64_t{blockIdx.x} * kSumThreads + threadIdx.x; at < count; at += int64_t{gridDim.x} * kSumThreads) {
    Sum total = parts[at];
    for (int part = 1; part < num_parts; ++part) total += parts[part * count + at];
    sum[at] = total;
  }
}

}  // namespace sgdkern
