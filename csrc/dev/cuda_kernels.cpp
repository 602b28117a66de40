// Development only, not shipped: the CUDA kernels, run on the CPU, on NumPy arrays; 16-bit types as their bits.

#include "device_on_cpu.h"
#include "faulty_kernels.h"
#include "../cuda/gram_launch.h"
#include "../cuda/gram_positions_launch.h"
#include "../cuda/matvec_launch.h"
#include "../cuda/minibatch_norms_launch.h"
#include "../cuda/patch_gram_launch.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

namespace py = pybind11;
using namespace sgdkern;

namespace {

struct Queue {
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), const Shape& shape, const Arguments&... arguments) const {
    on_cpu::launch(shape.blocks, shape.threads, shape.shared_bytes, [=] { kernel(arguments...); });
  }
};

using Numbers = std::tuple<int64_t, int64_t, int64_t>;

Device device_of(const Numbers& numbers) { return {std::get<0>(numbers), std::get<1>(numbers), std::get<2>(numbers)}; }

template <class Element>
Factor<Element> factor_of(const py::array& factor) {
  const Element* data = static_cast<const Element*>(factor.data());
  const int64_t stride = factor.strides(0) / int64_t{sizeof(Element)};
  return {data, factor.shape(1), stride, alignment_of(data, stride)};
}

// With two factors a layer, or with one (no output gradients).
template <class Element>
std::vector<Layer<Element>> layers_of(const std::vector<py::array>& inputs, const std::vector<py::array>& output_grads,
                                      const std::vector<bool>& constant_columns) {
  std::vector<Layer<Element>> layers;
  for (std::size_t l = 0; l < inputs.size(); ++l) {
    const bool both = !output_grads.empty();
    layers.push_back({{factor_of<Element>(inputs[l]), factor_of<Element>(both ? output_grads[l] : inputs[l])},
                      both ? 2 : 1, constant_columns[l]});
  }
  return layers;
}

template <class Product>
py::array norms(const std::vector<py::array>& inputs, const std::vector<py::array>& output_grads,
                const std::vector<bool>& constant_columns, const py::array_t<int64_t>& indices, const Numbers& device) {
  using Sum = typename Product::Sum;
  py::array_t<Sum> result(indices.shape(0));
  std::deque<std::vector<Sum>> kept;
  const auto allocate = [&](int64_t count) { return kept.emplace_back(count, NAN).data(); };
  minibatch_norms<Product>(layers_of<typename Product::Element>(inputs, output_grads, constant_columns), indices.data(),
                           indices.shape(0), indices.shape(1), inputs.at(0).shape(0), Queue{}, device_of(device), allocate,
                           result.mutable_data());
  return result;
}

// With two factors a layer a Gram matrix, with one (no output gradients) the sum of A A^T.
template <class Product>
py::array gram(const std::vector<py::array>& inputs, const std::vector<py::array>& output_grads,
               const std::vector<bool>& constant_columns, const Numbers& device) {
  using Element = typename Product::Element;
  using Sum = typename Product::Sum;
  const int64_t num_samples = inputs.at(0).shape(0);
  const std::vector<Layer<Element>> layers = layers_of<Element>(inputs, output_grads, constant_columns);
  GramSum<Product, Queue> sum(Queue{}, device_of(device), num_samples);
  const int64_t num_parts = std::min(sum.most_parts(), fewest_layers_of_a_launch(layers.size()));
  py::array_t<Sum> result({num_samples, num_samples});
  std::vector<Sum> parts(num_parts == 1 ? 0 : num_parts * num_samples * num_samples, NAN);
  sum.add(layers, num_parts, num_parts == 1 ? result.mutable_data() : parts.data());
  if (num_parts > 1) sum.finish(parts.data(), num_parts, result.mutable_data());
  return result;
}

// Of contiguous factors [N, T, features].
template <class Product>
py::array positions(const py::array& inputs, const py::array& output_grads, bool constant_column, const Numbers& device) {
  using Element = typename Product::Element;
  const auto rows_of = [](const py::array& factor) -> Factor<Element> {
    const Element* data = static_cast<const Element*>(factor.data());
    return {data, factor.shape(2), factor.shape(2), alignment_of(data, factor.shape(2))};
  };
  py::array_t<typename Product::Sum> result({inputs.shape(0), inputs.shape(0)});
  gram_positions<Product>(Layer<Element>{{rows_of(inputs), rows_of(output_grads)}, 2, constant_column}, inputs.shape(0),
                          inputs.shape(1), Queue{}, device_of(device), result.mutable_data());
  return result;
}

// Samples in a group, and the tiles of 64 rows that they take.
std::pair<int64_t, int64_t> group_sizes(int64_t num_samples, int64_t num_positions, const Numbers& device) {
  const int64_t samples = groups_of(num_samples, num_positions, SmallTile::kSamples, device_of(device)).samples;
  return {samples, small_tiles(samples * num_positions)};
}

using Pair = std::array<int64_t, 2>;

template <class Source>
PatchLayer<Source> patch_layer(const py::array& inputs, const py::array& output_grads, const Pair& kernel,
                               const Pair& stride, const Pair& dilation) {
  PatchLayer<Source> layer;
  layer.inputs = static_cast<const Source*>(inputs.data());
  layer.output_grads = static_cast<const Source*>(output_grads.data());
  for (int axis = 0; axis < 4; ++axis) {
    layer.input_strides[axis] = inputs.strides(axis) / int64_t{sizeof(Source)};
    layer.output_strides[axis] = output_grads.strides(axis) / int64_t{sizeof(Source)};
  }
  for (int axis = 0; axis < 2; ++axis) {
    layer.kernel[axis] = kernel[axis], layer.stride[axis] = stride[axis], layer.dilation[axis] = dilation[axis];
  }
  layer.num_samples = inputs.shape(0);
  layer.num_outputs = output_grads.shape(1);
  layer.num_taps = inputs.shape(1) * kernel[0] * kernel[1];
  layer.position_columns = output_grads.shape(3);
  layer.num_positions = output_grads.shape(2) * output_grads.shape(3);
  return layer;
}

template <class Product, class Source>
py::array gradients_of(const py::array& inputs, const py::array& output_grads, const Pair& kernel, const Pair& stride,
                       const Pair& dilation) {
  using Sum = typename Product::Sum;
  const PatchLayer<Source> layer = patch_layer<Source>(inputs, output_grads, kernel, stride, dilation);
  py::array_t<Sum> result({layer.num_samples, layer.num_outputs * layer.num_taps});
  form_gradients<Product>(layer, Queue{}, result.mutable_data());
  return result;
}

template <class Product, class Source>
py::array patches(const py::array& inputs, const py::array& output_grads, const Pair& kernel, const Pair& stride,
                  const Pair& dilation, int64_t budget, const Numbers& device) {
  using Sum = typename Product::Sum;
  const PatchLayer<Source> layer = patch_layer<Source>(inputs, output_grads, kernel, stride, dilation);
  py::array_t<Sum> result({layer.num_samples, layer.num_samples});
  std::deque<std::vector<Sum>> kept;
  const auto allocate = [&](int64_t count) { return kept.emplace_back(count + 1, NAN).data(); };
  patch_gram<Product, Source>(layer, Queue{}, device_of(device), budget, allocate, result.mutable_data());
  return result;
}

template <class Product>
py::array matvec_of(const py::array& inputs, const py::array& output_grads, const py::array& vector, const Numbers& device) {
  using Element = typename Product::Element;
  py::array_t<Element> result(inputs.shape(0));
  std::deque<std::vector<Element>> kept;
  const auto allocate = [&](int64_t count) { return kept.emplace_back(count, NAN).data(); };
  matvec<Product>(factor_of<Element>(inputs), factor_of<Element>(output_grads), factor_of<Element>(vector),
                  inputs.shape(0), Queue{}, device_of(device), allocate, result.mutable_data());
  return result;
}

template <class Product>
py::array rmatvec_of(const py::array& inputs, const py::array& output_grads, const py::array& weights, const Numbers& device) {
  using Element = typename Product::Element;
  py::array_t<Element> result({output_grads.shape(1), inputs.shape(1)});
  std::deque<std::vector<Element>> kept;
  const auto allocate = [&](int64_t count) { return kept.emplace_back(count, NAN).data(); };
  rmatvec<Product>(factor_of<Element>(inputs), factor_of<Element>(output_grads), static_cast<const Element*>(weights.data()),
                   inputs.shape(0), Queue{}, device_of(device), allocate, result.mutable_data());
  return result;
}

// Samples in a tile, blocks, threads, bytes of shared memory of a block, parts.
template <class Product>
py::tuple plan(int64_t num_samples, int64_t num_layers, const Numbers& numbers) {
  GramSum<Product, Queue> sum(Queue{}, device_of(numbers), num_samples);
  const int64_t num_parts = std::min(sum.most_parts(), fewest_layers_of_a_launch(num_layers));
  const Shape shape = sum.shape(num_parts);
  return py::make_tuple(sum.tile_samples(), shape.blocks, shape.threads, shape.shared_bytes, num_parts);
}

py::dict counts() {
  const on_cpu::Counts counts = std::exchange(on_cpu::counts, {});
  py::dict result;
  result["blocks"] = counts.blocks;
  result["matrix_instructions"] = counts.matrix_instructions;
  result["block_loads"] = counts.block_loads;
  result["bank_conflicts"] = counts.bank_conflicts;
  return result;
}

std::vector<std::pair<int64_t, int64_t>> tiles(int64_t side) {
  std::vector<std::pair<int64_t, int64_t>> places;
  for (int64_t i = 0; i < triangle(side); ++i) places.emplace_back(tile_at(i, side).row, tile_at(i, side).column);
  return places;
}

template <class Product, class Source>
void define_patches(py::module& module, const std::string& name) {
  module.def(("patch_gram_" + name).c_str(), &patches<Product, Source>);
  module.def(("patch_gradients_" + name).c_str(), &gradients_of<Product, Source>);
}

template <class Product>
void define(py::module& module, const std::string& name) {
  module.def(("gram_" + name).c_str(), &gram<Product>);
  module.def(("plan_" + name).c_str(), &plan<Product>);
  module.def(("gram_positions_" + name).c_str(), &positions<Product>);
  module.def(("minibatch_norms_" + name).c_str(), &norms<Product>);
}

}  // namespace

PYBIND11_MODULE(cuda_kernels, module) {
  define<CompensatedTf32>(module, "float32");
  define<Plain<float>>(module, "tf32");
  define<Plain<BFloat16>>(module, "bfloat16");
  define<Plain<Float16>>(module, "float16");
  define<Float64>(module, "float64");
  module.def("matvec_float32", &matvec_of<CompensatedTf32>);
  module.def("matvec_tf32", &matvec_of<Plain<float>>);
  module.def("matvec_float64", &matvec_of<Float64>);
  module.def("rmatvec_float32", &rmatvec_of<CompensatedTf32>);
  module.def("rmatvec_tf32", &rmatvec_of<Plain<float>>);
  module.def("rmatvec_float64", &rmatvec_of<Float64>);
  define_patches<CompensatedTf32, float>(module, "float32");
  define_patches<Plain<float>, float>(module, "tf32");
  define_patches<Plain<float>, BFloat16>(module, "bfloat16");
  define_patches<Plain<float>, Float16>(module, "float16");
  define_patches<Float64, double>(module, "float64");
  module.def("patch_shared_bytes", [] { return std::max(patch_shared_bytes<CompensatedTf32>(), patch_shared_bytes<Float64>()); });
  module.def("group_sizes", &group_sizes);
  module.def("tiles", &tiles, "The order of the tiles of a triangle.");
  module.def("chunk_place_float64", [](unsigned row, unsigned chunk) { return chunk_place<double>(row, chunk); });
  module.def("turned_place_float32", [](unsigned k, unsigned chunk) { return Turned<float>::place(k, chunk); });
  module.def("turned_place_float64", [](unsigned k, unsigned chunk) { return Turned<double>::place(k, chunk); });
  module.def("forgets_to_wait", [] { return run_faulty(forgets_to_wait); });
  module.def("forgets_a_barrier", [] { return run_faulty(forgets_a_barrier); });
  module.def("diverges_at_a_barrier", [] { return run_faulty(diverges_at_a_barrier); });
  module.def("diverges_in_a_warp", [] { return run_faulty(diverges_in_a_warp); });
  module.def("leaves_shared_memory", [] { return run_faulty(leaves_shared_memory); });
  module.def("last_warp_first", [](bool order) { on_cpu::last_warp_first = order; });
  module.def("counts", &counts, "What ran since the last call.");
}
