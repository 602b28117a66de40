// Development only, not shipped: the CUDA kernels, run on the CPU, on NumPy arrays.

#include "device_on_cpu.h"
#include "../cuda/gram_kernel.cuh"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

namespace py = pybind11;

namespace {

template <class T>
sgdkern::Factor<T> factor_of(const py::array_t<T>& factor) {
  return {factor.data(), factor.shape(1), factor.strides(0) / int64_t{sizeof(T)}};
}

template <class T>
py::array_t<T> gram(const std::vector<py::array_t<T>>& inputs, const std::vector<py::array_t<T>>& output_grads,
                    const std::vector<bool>& constant_columns) {
  const int64_t num_samples = inputs.at(0).shape(0), tiles = (num_samples + sgdkern::kTile - 1) / sgdkern::kTile;
  py::array_t<T> result({num_samples, num_samples});
  T* data = result.mutable_data();
  for (std::size_t begin = 0; begin < inputs.size(); begin += sgdkern::kMostLayers) {
    sgdkern::Layers<T> layers;
    layers.count = static_cast<int>(std::min<std::size_t>(sgdkern::kMostLayers, inputs.size() - begin));
    for (int l = 0; l < layers.count; ++l) {
      layers.layer[l] = {factor_of(inputs[begin + l]), factor_of(output_grads[begin + l]), constant_columns[begin + l]};
    }
    on_cpu::launch(tiles * (tiles + 1) / 2, sgdkern::kThreads,
                   [=] { sgdkern::gram_kernel<T, T>(layers, num_samples, begin == 0, data); });
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(cuda_kernels, module) {
  module.def("gram_float32", &gram<float>);
  module.def("gram_float64", &gram<double>);
}
