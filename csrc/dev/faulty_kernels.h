// Development only: kernels with one fault each, which the stand-in for a device must show.
#pragma once

#include "device_on_cpu.h"

#include <vector>

namespace sgdkern {

constexpr int kFaultyThreads = 64;
constexpr int kFaultyBytes = kFaultyThreads * sizeof(float);

// Each thread brings a number of `from` to shared memory and takes that of a thread of the other warp.
inline void forgets_to_wait(const float* from, float* to) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  copy_async<4>(shared + threadIdx.x, from + threadIdx.x, 4);
  commit_copies();
  __syncthreads();
  to[threadIdx.x] = shared[threadIdx.x ^ 32];
  wait_for_copies<0>();
}

inline void forgets_a_barrier(const float* from, float* to) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  copy_async<4>(shared + threadIdx.x, from + threadIdx.x, 4);
  commit_copies();
  wait_for_copies<0>();
  to[threadIdx.x] = shared[threadIdx.x ^ 32];
}

inline void diverges_at_a_barrier(const float*, float*) {
  if (threadIdx.x < 32) __syncthreads();
}

inline void diverges_in_a_warp(const float*, float*) {
  uint32_t blocks[4];
  if (threadIdx.x % 32 < 16) load_blocks(blocks, shared_memory());
}

inline void leaves_shared_memory(const float* from, float*) {
  copy_async<4>(shared_memory() + kFaultyBytes, from, 4);
}

inline std::vector<float> run_faulty(void (*kernel)(const float*, float*)) {
  const std::vector<float> from(kFaultyThreads, 1);
  std::vector<float> to(kFaultyThreads, 0);
  on_cpu::launch(1, kFaultyThreads, kFaultyBytes, [&] { kernel(from.data(), to.data()); });
  return to;
}

}  // namespace sgdkern
