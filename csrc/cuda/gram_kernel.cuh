// K [N, N] = sum over layers of (A A^T + c) * (D D^T), elementwise product; A [N, I] the layer's inputs, D [N, O] the
// gradients at its outputs, c = 1 where it has a bias (the constant column of A is folded in, never stored).
//
// Work     N (N + 1) / 2 * sum(I + O) multiply-adds: the tiles on and below the diagonal, mirrored once.
// Traffic  each block reads its rows and columns of every factor once; K is written once. No N x N temporary.
// Tiling   a block of 128 threads owns 64 x 64 of K, a thread 8 x 4 of it: A A^T, D D^T and K in registers (96). Stages
//          of 16 features lie in shared memory as [row, feature], a row padded by 16 bytes so that the eight rows which
//          a quarter of a warp reads fall into different banks; threads read four features at a time. The next stage
//          is copied (cp.async, 16 bytes) while this one is used. 64 rather than 128: N = 1024 has 136 tiles for the
//          132 multiprocessors of an H100, with 128 it would have 36.
// Numerics float32 (float64) fused multiply-adds, no tensor cores: as accurate as the CPU's. Sums run over features,
//          then layers, in order: bitwise repeatable.
// State    its logic is tested on the CPU (csrc/dev/device_on_cpu.h); speed on a GPU has not been measured.
//
// Include device.cuh, or its stand-in, first.
#pragma once

#include <cstdint>

namespace sgdkern {

constexpr int kTile = 64;          // samples
constexpr int kDepth = 16;         // features in a stage
constexpr int kRowThreads = 8;     // a thread's rows are kRowThreads apart, its columns kColumnThreads
constexpr int kColumnThreads = 16;
constexpr int kThreads = kRowThreads * kColumnThreads;
constexpr int kRows = kTile / kRowThreads;
constexpr int kColumns = kTile / kColumnThreads;
constexpr int kMostLayers = 32;    // in one launch: they travel as kernel arguments

template <class Source>
struct Factor {
  const Source* data;  // [N, features]
  int64_t features, stride;
};

template <class Source>
struct Layers {
  struct {
    Factor<Source> inputs, output_grads;
    bool constant_column;
  } layer[kMostLayers];
  int count;
};

template <class T>
struct Stages {
  static constexpr int kVector = 16 / sizeof(T);  // elements in 16 bytes
  static constexpr int kPitch = kDepth + kVector;
  struct Operand {
    alignas(16) T element[kTile][kPitch];
  };
  Operand rows[2], columns[2];
};

template <class T>
union Shared {
  Stages<T> stages;
  T mirror[kTile][kTile + 1];
};

// Brings features [begin, begin + kDepth) of samples [first, first + kTile) to shared memory; zeros past the ends.
template <class T, class Source>
__device__ void load_stage(const Factor<Source>& factor, int64_t num_samples, int64_t first, int64_t begin,
                           typename Stages<T>::Operand& operand) {
  constexpr int kVector = Stages<T>::kVector;
  const bool aligned = reinterpret_cast<uintptr_t>(factor.data) % 16 == 0 && factor.stride % kVector == 0;
  for (int i = threadIdx.x; i < kTile * kDepth / kVector; i += kThreads) {
    const int row = i / (kDepth / kVector), feature = i % (kDepth / kVector) * kVector;
    const int64_t sample = first + row;
    T* target = &operand.element[row][feature];
    const Source* source = factor.data + sample * factor.stride + begin + feature;
    const int64_t left = sample < num_samples ? factor.features - begin - feature : 0;
    if (sizeof(T) == sizeof(Source) && aligned && left >= kVector) {
      copy_async(target, source);
    } else {
      for (int k = 0; k < kVector; ++k) target[k] = k < left ? widen(source[k]) : T{0};
    }
  }
}

template <class T>
struct Products {
  T value[kRows][kColumns];
};

// products = the factor's rows [row0, row0 + kTile) times its rows [column0, column0 + kTile), transposed.
template <class T, class Source>
__device__ void multiply(const Factor<Source>& factor, int64_t num_samples, int64_t row0, int64_t column0,
                         Stages<T>& stages, Products<T>& products) {
  constexpr int kVector = Stages<T>::kVector;
  const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) products.value[i][j] = T{0};
  }
  const auto load = [&](int64_t begin, int stage) {
    if (begin < factor.features) {
      load_stage<T>(factor, num_samples, row0, begin, stages.rows[stage]);
      load_stage<T>(factor, num_samples, column0, begin, stages.columns[stage]);
    }
    commit_copies();
  };
  load(0, 0);
  int stage = 0;
  for (int64_t begin = 0; begin < factor.features; begin += kDepth, stage ^= 1) {
    load(begin + kDepth, stage ^ 1);
    wait_for_copies<1>();
    __syncthreads();
    for (int feature = 0; feature < kDepth; feature += kVector) {
      T a[kRows][kVector], b[kColumns][kVector];
      for (int i = 0; i < kRows; ++i) {
        for (int k = 0; k < kVector; ++k) a[i][k] = stages.rows[stage].element[row + i * kRowThreads][feature + k];
      }
      for (int j = 0; j < kColumns; ++j) {
        for (int k = 0; k < kVector; ++k) {
          b[j][k] = stages.columns[stage].element[column + j * kColumnThreads][feature + k];
        }
      }
      for (int k = 0; k < kVector; ++k) {
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kColumns; ++j) products.value[i][j] += a[i][k] * b[j][k];
        }
      }
    }
    __syncthreads();  // before the stage is filled again
  }
}

// One tile of K a block; blocks count the tiles of the lower triangle row by row. Adds to K unless `first`.
template <class T, class Source>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(const Layers<Source> layers, int64_t num_samples, bool first, T* gram) {
  __shared__ Shared<T> shared;
  const int64_t index = blockIdx.x;
  int64_t tile_row = static_cast<int64_t>((sqrt(8.0 * index + 1.0) - 1.0) / 2.0);  // off by one at most
  while (tile_row * (tile_row + 1) / 2 > index) --tile_row;
  while ((tile_row + 1) * (tile_row + 2) / 2 <= index) ++tile_row;
  const int64_t row0 = tile_row * kTile, column0 = (index - tile_row * (tile_row + 1) / 2) * kTile;
  const int row = threadIdx.x / kColumnThreads, column = threadIdx.x % kColumnThreads;

  Products<T> total, inputs, output_grads;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const int64_t m = row0 + row + i * kRowThreads, n = column0 + column + j * kColumnThreads;
      total.value[i][j] = first || m >= num_samples || n >= num_samples ? T{0} : gram[m * num_samples + n];
    }
  }
  for (int l = 0; l < layers.count; ++l) {
    multiply<T>(layers.layer[l].inputs, num_samples, row0, column0, shared.stages, inputs);
    multiply<T>(layers.layer[l].output_grads, num_samples, row0, column0, shared.stages, output_grads);
    const T constant = layers.layer[l].constant_column ? T{1} : T{0};
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        total.value[i][j] += (inputs.value[i][j] + constant) * output_grads.value[i][j];
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const int m = row + i * kRowThreads, n = column + j * kColumnThreads;
      shared.mirror[m][n] = total.value[i][j];
      if (row0 + m < num_samples && column0 + n < num_samples) {
        gram[(row0 + m) * num_samples + column0 + n] = total.value[i][j];
      }
    }
  }
  if (row0 == column0) return;  // the whole block: a tile on the diagonal is its own mirror image
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int m = i % kTile, n = i / kTile;
    if (row0 + m < num_samples && column0 + n < num_samples) {
      gram[(column0 + n) * num_samples + row0 + m] = shared.mirror[m][n];
    }
  }
}

}  // namespace sgdkern
