// What kernels share that multiply rows where they lie: a block of sums in registers, and sums of its lanes.
#pragma once

#include "gram.h"

namespace sgdkern {

#define SGDKERN_KERNELS "register_block.inl"
#include "instruction_sets.inl"

}  // namespace sgdkern
