// Includes SGDKERN_KERNELS once for every instruction set of the target, each time inside a namespace of its own, with
//   SGDKERN_TARGET        the function attribute that switches the instruction set on
//   SGDKERN_VECTOR_BYTES  bytes in a vector register
//   SGDKERN_ROWS          rows of a register block, and
//   SGDKERN_VECTORS       vectors in each: rows x vectors sums, a row of operands and one broadcast fill the registers
//   SGDKERN_LOADED(v)     keeps v in a register: the compiler would load it anew for each product, and loads are the limit

#define SGDKERN_INLINE SGDKERN_TARGET inline __attribute__((always_inline))

namespace baseline {  // SSE2 on x86-64, NEON on aarch64: what every such processor has
#define SGDKERN_TARGET
#define SGDKERN_VECTOR_BYTES 16
#define SGDKERN_ROWS 4
#ifdef __aarch64__
#define SGDKERN_VECTORS 4  // 32 registers there, 16 on x86-64
#define SGDKERN_LOADED(v) asm("" : "+w"(v))
#elif defined(__x86_64__)
#define SGDKERN_VECTORS 2
#define SGDKERN_LOADED(v) asm("" : "+x"(v))
#else
#define SGDKERN_VECTORS 2
#define SGDKERN_LOADED(v)
#endif
#include SGDKERN_KERNELS
#undef SGDKERN_TARGET
#undef SGDKERN_VECTOR_BYTES
#undef SGDKERN_ROWS
#undef SGDKERN_VECTORS
#undef SGDKERN_LOADED
}  // namespace baseline

#ifdef __x86_64__
namespace avx2 {
#define SGDKERN_TARGET __attribute__((target("avx2,fma")))
#define SGDKERN_VECTOR_BYTES 32
#define SGDKERN_ROWS 4
#define SGDKERN_VECTORS 3
#define SGDKERN_LOADED(v) asm("" : "+x"(v))
#include SGDKERN_KERNELS
#undef SGDKERN_TARGET
#undef SGDKERN_VECTOR_BYTES
#undef SGDKERN_ROWS
#undef SGDKERN_VECTORS
#undef SGDKERN_LOADED
}  // namespace avx2

namespace avx512 {
#define SGDKERN_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define SGDKERN_VECTOR_BYTES 64
#define SGDKERN_ROWS 8
#define SGDKERN_VECTORS 2
#define SGDKERN_LOADED(v) asm("" : "+v"(v))
#include SGDKERN_KERNELS
#undef SGDKERN_TARGET
#undef SGDKERN_VECTOR_BYTES
#undef SGDKERN_ROWS
#undef SGDKERN_VECTORS
#undef SGDKERN_LOADED
}  // namespace avx512
#endif

#undef SGDKERN_INLINE
#undef SGDKERN_KERNELS
