// The instruction sets that kernels are compiled for, and the choice among them at run time. A further one is named here, and
// has its registers in instruction_sets.inl; a further family of kernels is a struct and its values in an .inl, as in gram.h.
#pragma once

namespace sgdkern {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

struct NamedInstructionSet {
  InstructionSet set;
  const char* name;
};

constexpr NamedInstructionSet kInstructionSets[] = {  // the faster, the later
    {InstructionSet::kBaseline, "baseline"}, {InstructionSet::kAvx2, "avx2"}, {InstructionSet::kAvx512, "avx512"}};

inline bool is_supported(InstructionSet set) {
#ifdef __x86_64__
  if (set == InstructionSet::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == InstructionSet::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == InstructionSet::kBaseline;
}

inline InstructionSet best_instruction_set() {
  InstructionSet best = InstructionSet::kBaseline;
  for (const auto& [set, name] : kInstructionSets) {
    if (is_supported(set)) best = set;
  }
  return best;
}

// Functions and sizes of a family, one of the structs in the headers of kernels: where its .inl is included, it specializes
// this. Without that `kernels_for` does not compile.
namespace baseline {
template <class Family>
constexpr decltype(nullptr) kFamily = nullptr;
}

#ifdef __x86_64__
namespace avx2 {
template <class Family>
constexpr decltype(nullptr) kFamily = nullptr;
}

namespace avx512 {
template <class Family>
constexpr decltype(nullptr) kFamily = nullptr;
}
#endif

template <class Family>
const Family& kernels_for(InstructionSet set) {
#ifdef __x86_64__
  if (set == InstructionSet::kAvx512) return avx512::kFamily<Family>;
  if (set == InstructionSet::kAvx2) return avx2::kFamily<Family>;
#endif
  return baseline::kFamily<Family>;
}

}  // namespace sgdkern
