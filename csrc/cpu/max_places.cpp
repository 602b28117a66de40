// The CPU twin of sgdkern/ops/max_places.py: checks, allocates, calls max_places.h.

#include "max_places.h"

#include "tensors.h"

namespace sgdkern {
namespace {

// inputs [N, C, H, W] -> [N, C, H', W']
Tensor max_places_cpu(Tensor inputs, std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
                      bool ceil_mode) {
  STD_TORCH_CHECK(inputs.is_cpu() && inputs.dim() == 4, "max_places: inputs must be [N, C, H, W] on the CPU");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                  "max_places: kernel, stride and padding must have two entries");
  Pool pool;
  for (int axis = 0; axis < 2; ++axis) {
    constexpr int64_t kMost = int64_t{1} << 30;  // so that products stay in 64 bits
    const int64_t size = inputs.size(2 + axis), window = kernel[axis], step = stride[axis], border = padding[axis];
    STD_TORCH_CHECK(1 <= window && window <= kMost && 1 <= step && step <= kMost,
                    "max_places: kernel and stride must be positive");
    STD_TORCH_CHECK(0 <= border && 2 * border <= window, "max_places: padding must be at most half of the kernel");
    STD_TORCH_CHECK(1 <= size && size <= kMost && window <= size + 2 * border,
                    "max_places: windows must fit their padded planes");
    int64_t count = (size + 2 * border - window + (ceil_mode ? step - 1 : 0)) / step + 1;
    if (ceil_mode && (count - 1) * step >= size + border) --count;  // it would begin behind the plane
    pool.kernel[axis] = window, pool.stride[axis] = step, pool.padding[axis] = border;
    pool.inputs[axis] = size, pool.outputs[axis] = count;
  }
  STD_TORCH_CHECK(pool.inputs[0] * pool.inputs[1] < int64_t{1} << 31, "max_places: a plane must have less than 2^31 numbers");
  const int64_t num_planes = inputs.size(0) * inputs.size(1);
  const Tensor result = torch::stable::new_empty(
      inputs, {inputs.size(0), inputs.size(1), pool.outputs[0], pool.outputs[1]}, ScalarType::Long);
  const Tensor dense = torch::stable::contiguous(inputs);
  with_types("max_places", inputs.scalar_type(), [&]<class T, class Source>() {
    max_places<T>(static_cast<const Source*>(dense.const_data_ptr()), num_planes, pool, kTorchThreads,
                  static_cast<int64_t*>(result.mutable_data_ptr()));
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(sgdkern, CPU, library) {
  library.impl("max_places", TORCH_BOX(&max_places_cpu));
}

}  // namespace
}  // namespace sgdkern
