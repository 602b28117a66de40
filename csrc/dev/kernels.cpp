// Development only, not shipped: the raw CPU kernels by instruction set, on NumPy arrays.

#include "../cpu/gram_matvec.h"
#include "../cpu/gram_positions.h"
#include "../cpu/linear_gram_matvec.h"
#include "../cpu/narrow_linear.h"
#include "../cpu/patch_gram_matvec.h"
#include "../cpu/thin_product.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <thread>

namespace py = pybind11;
using sgdkern::InstructionSet;

namespace {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& [set, name] : sgdkern::kInstructionSets) {
    if (sgdkern::is_supported(set)) names.push_back(name);
  }
  return names;
}

InstructionSet set_of(const std::string& name) {
  for (const auto& [set, known] : sgdkern::kInstructionSets) {
    if (known == name && sgdkern::is_supported(set)) return set;
  }
  throw std::invalid_argument("no instruction set of this processor: " + name);
}

// As unfair as a thread pool can be: a thread for every unit, or fewer.
struct Threads {
  int64_t count;
  template <class Body>
  void operator()(int64_t units, const Body& body) const {
    std::vector<std::thread> threads;
    const int64_t share = (units + count - 1) / count;
    for (int64_t begin = 0; begin < units; begin += share) {
      threads.emplace_back([&body, begin, end = std::min(units, begin + share)] { body(begin, end); });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

template <class T>
using Arrays = std::vector<py::array_t<T>>;

template <class T>
std::vector<sgdkern::Layer<T>> layers_of(const Arrays<T>& inputs, const Arrays<T>& output_grads,
                                         const std::vector<bool>& constant_columns) {
  std::vector<sgdkern::Layer<T>> layers;
  for (std::size_t l = 0; l < inputs.size(); ++l) {
    const auto &a = inputs[l], &d = output_grads[l];
    layers.push_back({a.data(), d.data(), a.shape(1), d.shape(1), a.strides(0) / int64_t{sizeof(T)},
                      d.strides(0) / int64_t{sizeof(T)}, constant_columns[l]});
  }
  return layers;
}

template <class T>
py::array_t<T> gram(const Arrays<T>& inputs, const Arrays<T>& output_grads, const std::vector<bool>& constant_columns,
                    const std::string& name, int64_t num_threads) {
  const std::vector<sgdkern::Layer<T>> layers = layers_of(inputs, output_grads, constant_columns);
  const int64_t num_samples = inputs.at(0).shape(0);
  py::array_t<T> result({num_samples, num_samples});
  if (!sgdkern::gram<T, T>(layers, num_samples, set_of(name), Threads{num_threads}, num_threads, result.mutable_data())) {
    throw std::bad_alloc();
  }
  return result;
}

template <class T>
py::array_t<T> gram_matvec(const Arrays<T>& inputs, const Arrays<T>& output_grads, const std::vector<bool>& constant_columns,
                           const py::array_t<T>& weights, const std::string& name, int64_t num_threads) {
  const std::vector<sgdkern::Layer<T>> layers = layers_of(inputs, output_grads, constant_columns);
  const int64_t num_samples = weights.shape(0), num_columns = weights.shape(1);
  py::array_t<T> result({num_samples, 1 + num_columns});
  if (!sgdkern::gram_matvec<T, T>(layers, num_samples, weights.data(), num_columns, set_of(name),
                                  Threads{num_threads}, num_threads, result.mutable_data())) {
    throw std::bad_alloc();
  }
  return result;
}

template <class T>
py::array_t<T> linear_gram_matvec(const py::array_t<T>& inputs, const py::array_t<T>& output_grads, bool constant_column,
                                  const py::array_t<T>& weights, const std::string& name, int64_t num_threads) {
  const sgdkern::Layer<T> layer = layers_of<T>({inputs}, {output_grads}, {constant_column})[0];
  py::array_t<T> result({weights.shape(0), 1 + weights.shape(1)});
  if (!sgdkern::linear_gram_matvec<T, T>(layer, weights.shape(0), weights.data(), weights.shape(1), set_of(name),
                                         Threads{num_threads}, result.mutable_data())) {
    throw std::bad_alloc();
  }
  return result;
}

// A layer of inputs [N, T, I] and output gradients [N, T, O].
template <class T>
py::array_t<T> patch_gram_matvec(const py::array_t<T>& inputs, const py::array_t<T>& output_grads,
                                 const py::array_t<T>& weights, const std::string& name, int64_t num_threads) {
  const int64_t num_samples = inputs.shape(0), positions = inputs.shape(1), num_columns = weights.shape(1);
  const int64_t in_features = inputs.shape(2), out_features = output_grads.shape(2);
  sgdkern::PatchLayer<T> layer{inputs.data(), output_grads.data(), positions * in_features, positions * out_features,
                               positions * in_features, positions * out_features, out_features, 1, {}, {}, {}};
  for (int64_t i = 0; i < in_features; ++i) layer.taps.push_back(i);
  for (int64_t t = 0; t < positions; ++t) {
    layer.input_positions.push_back(t * in_features);
    layer.output_positions.push_back(t * out_features);
  }
  py::array_t<T> result({num_samples, 1 + num_columns});
  if (!sgdkern::patch_gram_matvec<T, T>(layer, num_samples, weights.data(), num_columns, set_of(name),
                                        Threads{num_threads}, result.mutable_data())) {
    throw std::bad_alloc();
  }
  return result;
}

template <class T>
py::array_t<T> gram_positions(const py::array_t<T>& inputs, const py::array_t<T>& output_grads, bool constant_column,
                              const std::string& name, int64_t num_threads) {
  const int64_t num_samples = inputs.shape(0), in_features = inputs.shape(2), out_features = output_grads.shape(2);
  const sgdkern::Layer<T> layer{inputs.data(), output_grads.data(), in_features, out_features, in_features, out_features,
                                constant_column};
  py::array_t<T> result({num_samples, num_samples});
  if (!sgdkern::gram_positions<T, T>(layer, num_samples, inputs.shape(1), set_of(name), Threads{num_threads},
                                     result.mutable_data())) {
    throw std::bad_alloc();
  }
  return result;
}

template <class T>
py::array_t<T> minibatch_norms(const Arrays<T>& inputs, const Arrays<T>& output_grads,
                               const std::vector<bool>& constant_columns, const py::array_t<int64_t>& indices,
                               const std::string& name, int64_t num_threads) {
  const std::vector<sgdkern::Layer<T>> layers = layers_of(inputs, output_grads, constant_columns);
  py::array_t<T> result(indices.shape(0));
  sgdkern::minibatch_norms<T, T>(layers, indices.data(), indices.shape(0), indices.shape(1), set_of(name),
                                 Threads{num_threads}, result.mutable_data());
  return result;
}

template <class T>
py::array_t<T> narrow_linear(const py::array_t<T>& inputs, const py::array_t<T>& weight, const py::array_t<T>& bias,
                             const std::string& name, int64_t num_threads) {
  const int64_t rows = inputs.shape(0), features = inputs.shape(1), outputs = weight.shape(0);
  py::array_t<T> result({rows, outputs});
  sgdkern::narrow_linear<T>({inputs.data(), rows, features}, {weight.data(), outputs, features}, features, bias.data(),
                            set_of(name), Threads{num_threads}, result.mutable_data());
  return result;
}

// matrix [M, K] times packed vectors [K, kThin], by rows or from its transpose by columns.
template <class T>
py::array_t<T> thin_product(const py::array_t<T>& matrix, const py::array_t<T>& vectors, bool transposed,
                            const std::string& name, int64_t num_threads) {
  const int64_t rows = matrix.shape(transposed), features = matrix.shape(!transposed);
  const sgdkern::ThinMatrix<T> a{matrix.data(), rows, features, transposed ? 1 : features, transposed ? rows : 1};
  py::array_t<T> result({rows, int64_t{sgdkern::kThin}});
  sgdkern::thin_product(a, vectors.data(), sgdkern::kThin, set_of(name), Threads{num_threads},
                        result.mutable_data(), sgdkern::kThin);
  return result;
}

}  // namespace

PYBIND11_MODULE(kernels, module) {
  module.def("instruction_sets", &instruction_sets, "Those that this processor has.");
  module.def("gram_float32", &gram<float>);
  module.def("gram_float64", &gram<double>);
  module.def("gram_matvec_float32", &gram_matvec<float>);
  module.def("gram_matvec_float64", &gram_matvec<double>);
  module.def("linear_gram_matvec_float32", &linear_gram_matvec<float>);
  module.def("linear_gram_matvec_float64", &linear_gram_matvec<double>);
  module.def("patch_gram_matvec_float32", &patch_gram_matvec<float>);
  module.def("patch_gram_matvec_float64", &patch_gram_matvec<double>);
  module.def("gram_positions_float32", &gram_positions<float>);
  module.def("gram_positions_float64", &gram_positions<double>);
  module.def("minibatch_norms_float32", &minibatch_norms<float>);
  module.def("minibatch_norms_float64", &minibatch_norms<double>);
  module.def("narrow_linear_float32", &narrow_linear<float>);
  module.def("narrow_linear_float64", &narrow_linear<double>);
  module.def("thin_product_float32", &thin_product<float>);
  module.def("thin_product_float64", &thin_product<double>);
}
