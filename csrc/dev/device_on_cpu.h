// Development only: runs CUDA kernels on the CPU, for tests without a GPU. Each thread of a block is a fiber, blocks run
// one after the other. What fibers cannot do alone they meet for: `__syncthreads` the block, a matrix instruction its
// warp; not meeting is an error. An asynchronous copy takes place when it is waited for, not before, and shared memory
// begins as NaN, so that a missing wait or barrier shows as a wrong result, in one of the two orders of warps at least.
//
// Matrix instructions multiply exactly and add with truncation to float32, as tensor cores do (Fasi, Higham, Mikaitis,
// Pranesh, PeerJ Comput. Sci. 7:e330, 2021), in the fragments' layouts of the PTX manual; see device.cuh.
#pragma once

#undef _FORTIFY_SOURCE  // whose longjmp takes a change of stacks for an overflow

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <bit>
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
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0;
};

inline Index threadIdx, blockIdx, gridDim;

namespace on_cpu {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 128 << 10;

struct Copy {
  void* target;
  const void* source;
  int bytes, valid;
};

// What the lanes of a warp meet for: given each lane's operands, does the work of all.
using Collective = void (*)(const std::array<void*, kWarp>& operands);

enum class Stop { kNone, kCollective, kBarrier, kDone };

struct Fiber {
  ucontext_t begin;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  bool started;
  Stop stop;
  Collective collective;
  void* operands;
};

// What a launch did, for tests.
struct Counts {
  int64_t blocks = 0, matrix_instructions = 0, block_loads = 0, bank_conflicts = 0;
};

inline Counts counts;
inline bool last_warp_first = false;  // the order in which the warps of a block run

inline std::vector<Fiber> fibers;
inline unsigned current = 0;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::exception_ptr failure;
inline std::vector<char> memory;  // shared, of the block
inline char* shared_begin = nullptr;
inline int64_t shared_bytes = 0;

// Back to the scheduler, until it comes back here.
[[gnu::noinline]] inline void leave(Stop stop) {
  fibers[current].stop = stop;
  if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

inline void enter() {
  try {
    body();
  } catch (...) {  // an exception cannot leave a fiber by itself
    failure = std::current_exception();
  }
  leave(Stop::kDone);
}

[[gnu::noinline]] inline void resume(unsigned thread) {
  current = thread;
  threadIdx.x = thread;
  Fiber& fiber = fibers[thread];
  if (!_setjmp(scheduler)) {
    if (std::exchange(fiber.started, true)) _longjmp(fiber.here, 1);
    setcontext(&fiber.begin);
  }
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

// Runs a warp to its next barrier, or its end.
inline void run_warp(unsigned first) {
  for (Stop stop = Stop::kCollective; stop == Stop::kCollective;) {
    std::array<void*, kWarp> operands;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      Fiber& fiber = fibers[first + lane];
      if (fiber.stop != Stop::kDone) resume(first + lane);
      operands[lane] = fiber.operands;
      if (fiber.stop != fibers[first].stop || fiber.collective != fibers[first].collective) {
        throw std::logic_error("a matrix instruction or __syncthreads was not reached by all threads of the warp");
      }
    }
    stop = fibers[first].stop;
    if (stop == Stop::kCollective) std::exchange(fibers[first].collective, nullptr)(operands);
    for (unsigned lane = 0; lane < kWarp; ++lane) fibers[first + lane].collective = nullptr;
  }
}

inline void run_block(unsigned num_threads) {
  if (num_threads % kWarp) throw std::logic_error("blocks are whole warps");
  std::memset(shared_begin, 0xff, shared_bytes);
  fibers.resize(num_threads);
  for (Fiber& fiber : fibers) {
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStackBytes);
    fiber.groups.clear(), fiber.open.clear();
    fiber.started = false, fiber.stop = Stop::kNone, fiber.collective = nullptr, fiber.operands = nullptr;
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack.get();
    fiber.begin.uc_stack.ss_size = kStackBytes;
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, enter, 0);
  }
  do {
    for (unsigned first = 0; first < num_threads; first += kWarp) {
      run_warp(last_warp_first ? num_threads - kWarp - first : first);
    }
    for (const Fiber& fiber : fibers) {
      if (fiber.stop != fibers[0].stop) throw std::logic_error("__syncthreads was not reached by all threads of the block");
    }
  } while (fibers[0].stop != Stop::kDone);
  for (const Fiber& fiber : fibers) {
    for (const std::vector<Copy>& group : fiber.groups) {
      if (!group.empty()) throw std::logic_error("a kernel ended with copies under way");
    }
  }
  ++counts.blocks;
}

template <class Kernel>
void launch(int64_t num_blocks, unsigned num_threads, int64_t bytes, const Kernel& kernel) {
  body = kernel;
  gridDim.x = static_cast<unsigned>(num_blocks);
  memory.resize(bytes + 128);
  shared_begin = memory.data() + (128 - reinterpret_cast<uintptr_t>(memory.data()) % 128);
  shared_bytes = bytes;
  for (int64_t block = 0; block < num_blocks; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    run_block(num_threads);
  }
}

// The lanes of a warp meet; `evaluate` gets an array of their operands' addresses.
template <class Operands>
void meet(Collective evaluate, Operands& operands) {
  fibers[current].collective = evaluate;
  fibers[current].operands = &operands;
  leave(Stop::kCollective);
}

inline void check_shared(const void* address, int bytes) {
  const char* at = static_cast<const char*>(address);
  if (at < shared_begin || at + bytes > shared_begin + shared_bytes) throw std::logic_error("outside of shared memory");
  if (reinterpret_cast<uintptr_t>(at) % bytes) throw std::logic_error("shared memory must be aligned as it is used");
}

// What a tensor core makes of an exact sum.
inline float truncated(double sum) {
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<uint64_t>(sum) & ~((uint64_t{1} << 29) - 1)));
}

inline double tf32(uint32_t bits) {
  const float value = std::bit_cast<float>(bits);
  if (bits & 0x1fff && !std::isnan(value)) throw std::logic_error("an operand has more bits than TF32");
  return value;
}

inline double float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

inline double bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

struct Multiplication {
  float (*sums)[4];
  const uint32_t* left;
  const uint32_t* right;
};

// `element(registers, k)`: number k of the 32 / kDepth bytes that a lane holds of a row.
template <int kDepth, class Element>
void multiply(const std::array<void*, kWarp>& operands, const Element& element) {
  constexpr int kHeld = kDepth / 8;  // numbers in a register
  double left[16][kDepth], right[8][kDepth];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const Multiplication& mine = *static_cast<Multiplication*>(operands[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (int k = 0; k < kHeld; ++k) {
      for (int half = 0; half < 2; ++half) {
        const unsigned feature = half * kDepth / 2 + t * kHeld + k;
        left[g][feature] = element(mine.left[2 * half], k);
        left[g + 8][feature] = element(mine.left[2 * half + 1], k);
        right[g][feature] = element(mine.right[half], k);
      }
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    float(&sums)[4] = *static_cast<Multiplication*>(operands[lane])->sums;
    for (int i = 0; i < 4; ++i) {
      const double* a = left[lane / 4 + i / 2 * 8];
      const double* b = right[lane % 4 * 2 + i % 2];
      double sum = sums[i];
      for (int k = 0; k < kDepth; ++k) sum += a[k] * b[k];
      sums[i] = truncated(sum);
    }
  }
  ++counts.matrix_instructions;
}

struct DoubleMultiplication {
  double (*sums)[4];
  const double (*left)[2];
  double right;
};

struct BlockLoad {
  uint32_t (*blocks)[4];
  const char* row;
};

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::leave(on_cpu::Stop::kBarrier); }

inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }

namespace sgdkern {

using std::sqrt;

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return static_cast<float>(on_cpu::bfloat16(value.bits)); }
inline float widen(Float16 value) { return static_cast<float>(on_cpu::float16(value.bits)); }

inline float nearest_tf32(float value) {
  return std::isfinite(value) ? std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x1000) & 0xffffe000) : value;
}

inline char* shared_memory() { return on_cpu::shared_begin; }

template <int kBytes>
void copy_async(void* shared, const void* global, int valid) {
  on_cpu::check_shared(shared, kBytes);
  if (reinterpret_cast<uintptr_t>(global) % kBytes) throw std::logic_error("copy_async: the source must be aligned");
  if (valid < 0 || valid > kBytes) throw std::logic_error("copy_async: more bytes than are copied");
  std::memset(shared, 0xff, kBytes);
  on_cpu::fibers[on_cpu::current].open.push_back({shared, global, kBytes, valid});
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
    for (const on_cpu::Copy& copy : fiber.groups.front()) {
      std::memcpy(copy.target, copy.source, copy.valid);
      std::memset(static_cast<char*>(copy.target) + copy.valid, 0, copy.bytes - copy.valid);
    }
  }
}

inline void load_blocks(uint32_t (&blocks)[4], const void* row) {
  on_cpu::check_shared(row, 16);
  on_cpu::BlockLoad load{&blocks, static_cast<const char*>(row)};
  on_cpu::meet(
      [](const std::array<void*, on_cpu::kWarp>& operands) {
        const auto load_of = [&](unsigned lane) -> on_cpu::BlockLoad& { return *static_cast<on_cpu::BlockLoad*>(operands[lane]); };
        for (unsigned block = 0; block < 4; ++block) {
          unsigned banks = 0;  // of 16 bytes
          for (unsigned r = 0; r < 8; ++r) banks |= 1u << (load_of(8 * block + r).row - on_cpu::shared_begin) / 16 % 8;
          on_cpu::counts.bank_conflicts += 8 - std::popcount(banks);
          for (unsigned lane = 0; lane < on_cpu::kWarp; ++lane) {
            std::memcpy(&(*load_of(lane).blocks)[block], load_of(8 * block + lane / 4).row + lane % 4 * 4, 4);
          }
        }
        ++on_cpu::counts.block_loads;
      },
      load);
}

inline void multiply_tf32(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  on_cpu::Multiplication mine{&sums, left, right};
  on_cpu::meet(
      [](const std::array<void*, on_cpu::kWarp>& operands) {
        on_cpu::multiply<8>(operands, [](uint32_t bits, int) { return on_cpu::tf32(bits); });
      },
      mine);
}

inline void multiply_16_bit(BFloat16, float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  on_cpu::Multiplication mine{&sums, left, right};
  on_cpu::meet(
      [](const std::array<void*, on_cpu::kWarp>& operands) {
        on_cpu::multiply<16>(operands, [](uint32_t bits, int k) { return on_cpu::bfloat16(bits >> 16 * k & 0xffff); });
      },
      mine);
}

inline void multiply_16_bit(Float16, float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  on_cpu::Multiplication mine{&sums, left, right};
  on_cpu::meet(
      [](const std::array<void*, on_cpu::kWarp>& operands) {
        on_cpu::multiply<16>(operands, [](uint32_t bits, int k) { return on_cpu::float16(bits >> 16 * k & 0xffff); });
      },
      mine);
}

inline void multiply_float64(double (&sums)[4], const double (&left)[2], double right) {
  on_cpu::DoubleMultiplication mine{&sums, &left, right};
  on_cpu::meet(
      [](const std::array<void*, on_cpu::kWarp>& operands) {
        using Mine = on_cpu::DoubleMultiplication;
        const auto of = [&](unsigned lane) -> Mine& { return *static_cast<Mine*>(operands[lane]); };
        for (unsigned lane = 0; lane < on_cpu::kWarp; ++lane) {
          for (int i = 0; i < 4; ++i) {
            double& sum = (*of(lane).sums)[i];
            for (unsigned k = 0; k < 4; ++k) {
              sum = std::fma((*of(lane / 4 * 4 + k).left)[i / 2], of((lane % 4 * 2 + i % 2) * 4 + k).right, sum);
            }
          }
        }
        on_cpu::counts.matrix_instructions += 2;
      },
      mine);
}

}  // namespace sgdkern
