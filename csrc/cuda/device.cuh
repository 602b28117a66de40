// What kernels need of the device beyond C++: shared memory, asynchronous copies, matrix instructions, narrow types.
// csrc/dev/device_on_cpu.h offers the same to tests without a GPU.
//
// Fragments of the matrix instructions (PTX ISA, "Matrix fragments for mma.m16n8k8", "... .m16n8k16", "... .m8n8k4"):
// with g = lane / 4 and t = lane % 4, a lane holds of the left operand [16, 32 bytes] the 4 bytes t of rows g, g + 8 of
// the first 16 bytes, then the same of the second 16 bytes; of the right operand [8, 32 bytes] those of row g; of the
// sums [16, 8] (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
#pragma once

#include <cstdint>

namespace sgdkern {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(BFloat16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ inline float widen(Float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

// float32 to the nearest TF32 (10 bits of mantissa), ties away from zero.
__device__ inline float nearest_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

// The block's shared memory, of as many bytes as the launch asked for.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// kBytes (4, 8 or 16, to which both are aligned) from global to shared memory: `valid` of them, then zeros.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global, int valid) {
  if constexpr (kBytes == 16) {  // past the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(valid)
                 : "memory");
  }
}

// Closes the group of the copies begun since the last one.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for all of this thread's groups but the latest kPending.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four blocks of 8 rows x 16 bytes: lane l gives the address of row l % 8 of block l / 8, and receives of each block
// the 4 bytes l % 4 of row l / 4.
__device__ inline void load_blocks(uint32_t (&blocks)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(blocks[0]), "=r"(blocks[1]), "=r"(blocks[2]), "=r"(blocks[3])
               : "r"(shared_address(row))
               : "memory");
}

#define SGDKERN_MULTIPLY(instruction)                                                                             \
  asm("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"         \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                 \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))

// sums [16, 8] += left [16, k] right [8, k]^T of 32 bytes of features: k = 8 of TF32, 16 of the 16-bit types, 4 of double.
__device__ inline void multiply_tf32(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  SGDKERN_MULTIPLY("m16n8k8.row.col.f32.tf32.tf32.f32");
}

__device__ inline void multiply_16_bit(BFloat16, float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  SGDKERN_MULTIPLY("m16n8k16.row.col.f32.bf16.bf16.f32");
}

__device__ inline void multiply_16_bit(Float16, float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  SGDKERN_MULTIPLY("m16n8k16.row.col.f32.f16.f16.f32");
}

#undef SGDKERN_MULTIPLY

// Of doubles a lane holds element t of the rows.
__device__ inline void multiply_float64(double (&sums)[4], const double (&left)[2], double right) {
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};\n"
        : "+d"(sums[2 * half]), "+d"(sums[2 * half + 1])
        : "d"(left[half]), "d"(right));
  }
}

}  // namespace sgdkern
