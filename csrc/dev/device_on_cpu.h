// Development only: runs CUDA kernels on the CPU, for tests without a GPU. Each thread of a block is a fiber, blocks run
// one after the other; `__syncthreads` hands over to the next fiber. An asynchronous copy takes place when it is waited
// for, not before, and shared memory begins as NaN, so that a missing wait or barrier shows as a wrong result.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  unsigned x = 0;
};

inline Index threadIdx, blockIdx;

namespace on_cpu {

struct Copy {
  void* target;
  const void* source;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  int barriers = 0;
  bool done = false;
};

constexpr std::size_t kStackBytes = 64 << 10;
inline std::vector<Fiber> fibers;
inline unsigned current = 0;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::exception_ptr failure;

inline void enter() {
  try {
    body();
  } catch (...) {  // an exception cannot leave a fiber by itself
    failure = std::current_exception();
  }
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block(unsigned num_threads) {
  fibers.clear();
  fibers.resize(num_threads);
  for (Fiber& fiber : fibers) {
    fiber.stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (current = 0; current < num_threads; ++current) {
      if (fibers[current].done) continue;
      threadIdx.x = current;
      swapcontext(&scheduler, &fibers[current].context);
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      running |= !fibers[current].done;
    }
    for (const Fiber& fiber : fibers) {
      if (fiber.done != fibers[0].done || fiber.barriers != fibers[0].barriers) {
        throw std::logic_error("__syncthreads was not reached by all threads of the block");
      }
    }
  }
}

template <class Kernel>
void launch(int64_t num_blocks, unsigned num_threads, const Kernel& kernel) {
  body = kernel;
  for (int64_t block = 0; block < num_blocks; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    run_block(num_threads);
  }
}

}  // namespace on_cpu

inline void __syncthreads() {
  on_cpu::Fiber& fiber = on_cpu::fibers[on_cpu::current];
  ++fiber.barriers;
  swapcontext(&fiber.context, &on_cpu::scheduler);
}

namespace sgdkern {

using std::sqrt;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

inline void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16) {
    throw std::logic_error("copy_async needs 16-byte alignment");
  }
  std::memset(shared, 0xff, 16);
  on_cpu::fibers[on_cpu::current].open.push_back({shared, global});
}

inline void commit_copies() {
  on_cpu::Fiber& fiber = on_cpu::fibers[on_cpu::current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int kPending>
void wait_for_copies() {
  on_cpu::Fiber& fiber = on_cpu::fibers[on_cpu::current];
  for (; fiber.groups.size() > kPending; fiber.groups.pop_front()) {
    for (const on_cpu::Copy& copy : fiber.groups.front()) std::memcpy(copy.target, copy.source, 16);
  }
}

}  // namespace sgdkern
