// Development only: the CPU kernels on random shapes, strides and unaligned rows, for AddressSanitizer and UBSan. Each
// factor lies in an allocation of exactly its size, so that one element read too many is caught.

#include "../cpu/gram_matvec.h"
#include "../cpu/gram_positions.h"
#include "../cpu/linear_gram_matvec.h"
#include "../cpu/max_places.h"
#include "../cpu/narrow_linear.h"
#include "../cpu/patch_gradients.h"
#include "../cpu/patch_gram.h"
#include "../cpu/patch_gram_matvec.h"
#include "../cpu/thin_product.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <thread>

namespace {

using sgdkern::InstructionSet;

std::mt19937_64 engine(0);

int64_t uniform(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(engine); }

template <class Source>
Source random_value() {
  if constexpr (std::is_floating_point_v<Source>) {
    return std::normal_distribution<Source>()(engine);
  } else {
    return {static_cast<uint16_t>(engine() & 0xbbff)};  // any sign and mantissa, exponents that are neither NaN nor infinity
  }
}

template <class Source>
struct Factor {
  std::vector<Source> memory;
  int64_t features, stride;
  Factor(int64_t num_samples, int64_t width) : features(width), stride(width + uniform(0, 3)) {
    memory.resize(num_samples ? (num_samples - 1) * stride + width : 0);
    for (Source& value : memory) value = random_value<Source>();
  }
  double number(int64_t i, int64_t k) const { return double(sgdkern::widen<double>(memory[i * stride + k])); }
  double product(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t k = 0; k < features; ++k) sum += number(i, k) * number(j, k);
    return sum;
  }
};

constexpr int64_t kNumThreads = 2;

const auto kThreads = [](int64_t count, const auto& body) {
  std::thread other([&] { body(0, count / 2); });
  body(count / 2, count);
  other.join();
};

using Widths = std::vector<std::array<int64_t, 2>>;  // inputs and outputs of each layer

Widths random_widths() {
  Widths widths(uniform(1, 3));
  for (auto& [in, out] : widths) {
    in = uniform(0, 1) ? uniform(0, 20) : uniform(300, 800);
    out = uniform(0, 40);
  }
  return widths;
}

template <class Source>
struct Network {
  std::vector<Factor<Source>> inputs, output_grads;
  std::vector<sgdkern::Layer<Source>> layers;
  explicit Network(int64_t num_samples, const Widths& widths = random_widths()) {
    inputs.reserve(widths.size()), output_grads.reserve(widths.size());
    for (const auto& [in, out] : widths) {
      const Factor<Source>& a = inputs.emplace_back(num_samples, in);
      const Factor<Source>& d = output_grads.emplace_back(num_samples, out);
      layers.push_back(
          {a.memory.data(), d.memory.data(), a.features, d.features, a.stride, d.stride, bool(uniform(0, 1))});
    }
  }
  double product(int64_t i, int64_t j) const {
    double sum = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      sum += (inputs[l].product(i, j) + double(layers[l].constant_column)) * output_grads[l].product(i, j);
    }
    return sum;
  }
};

template <class T, class Source>
bool check(int64_t num_samples, InstructionSet set, const Widths& widths = random_widths()) {
  const Network<Source> network(num_samples, widths);
  std::vector<T> result(num_samples * num_samples);
  if (!sgdkern::gram<T, Source>(network.layers, num_samples, set, kThreads, kNumThreads, result.data())) return false;
  for (int probe = 0; probe < 50 && num_samples; ++probe) {
    const int64_t i = uniform(0, num_samples - 1), j = uniform(0, num_samples - 1);
    const double truth = network.product(i, j), scale = std::sqrt(network.product(i, i) * network.product(j, j)) + 1e-30;
    const double error = std::fabs(result[i * num_samples + j] - truth) / scale;
    if (!(error < 1000 * double(std::numeric_limits<T>::epsilon())) ||
        result[i * num_samples + j] != result[j * num_samples + i]) {
      std::printf("N = %ld, (%ld, %ld): relative error %g\n", long(num_samples), long(i), long(j), error);
      return false;
    }
  }
  return true;
}

// result [N, 1 + num_columns] against K [N, N]: its diagonal, and its products.
template <class T>
bool check_products(const std::vector<T>& result, const std::vector<T>& gram, const std::vector<T>& weights,
                    int64_t num_samples, int64_t num_columns) {
  // 16-bit factors of any exponent: K_ii may underflow where K_ij does not.
  const auto length = [&](int64_t i) { return std::sqrt(std::fabs(double(gram[i * num_samples + i]))) + 1e-19; };
  for (int64_t i = 0; i < num_samples; ++i) {
    for (int64_t s = 0; s <= num_columns; ++s) {
      double truth = 0, scale = 1e-30;
      for (int64_t j = s ? 0 : i; j < (s ? num_samples : i + 1); ++j) {
        const double weight = s ? double(weights[j * num_columns + s - 1]) : 1;
        truth += double(gram[i * num_samples + j]) * weight, scale += length(i) * length(j) * std::fabs(weight);
      }
      const double error = std::fabs(result[i * (1 + num_columns) + s] - truth) / scale;
      if (!(error < 2000 * double(std::numeric_limits<T>::epsilon()))) {
        std::printf("products, N = %ld, (%ld, %ld): relative error %g\n", long(num_samples), long(i), long(s), error);
        return false;
      }
    }
  }
  return true;
}

template <class T>
std::vector<T> random_weights(int64_t count) {
  std::vector<T> weights(count);
  for (T& weight : weights) weight = random_value<T>();
  return weights;
}

template <class T, class Source>
bool check_gram_matvec(int64_t num_samples, InstructionSet set, const Widths& widths = random_widths()) {
  const Network<Source> network(num_samples, widths);
  const int64_t num_columns = uniform(0, 3);
  const std::vector<T> weights = random_weights<T>(num_samples * num_columns);
  std::vector<T> gram(num_samples * num_samples), result(num_samples * (1 + num_columns));
  return sgdkern::gram<T, Source>(network.layers, num_samples, set, kThreads, kNumThreads, gram.data()) &&
         sgdkern::gram_matvec<T, Source>(network.layers, num_samples, weights.data(), num_columns, set, kThreads,
                                         kNumThreads, result.data()) &&
         check_products(result, gram, weights, num_samples, num_columns);
}

template <class T, class Source>
bool check_linear(int64_t num_samples, InstructionSet set) {
  Network<Source> network(num_samples);
  network.layers.resize(1);
  const int64_t num_columns = uniform(0, 3);
  const std::vector<T> weights = random_weights<T>(num_samples * num_columns);
  std::vector<T> gram(num_samples * num_samples), result(num_samples * (1 + num_columns));
  return sgdkern::gram<T, Source>(network.layers, num_samples, set, kThreads, kNumThreads, gram.data()) &&
         sgdkern::linear_gram_matvec<T, Source>(network.layers[0], num_samples, weights.data(), num_columns, set, kThreads,
                                                result.data()) &&
         check_products(result, gram, weights, num_samples, num_columns);
}

template <class T, class Source>
bool check_minibatches(int64_t num_samples, InstructionSet set) {
  const Network<Source> network(num_samples);
  const int64_t num_minibatches = uniform(0, 5), size = uniform(0, 7) ? uniform(0, 12) : uniform(20, 60);
  std::vector<int64_t> members(num_samples ? num_minibatches * size : 0);
  for (int64_t& member : members) member = uniform(0, num_samples - 1);
  std::vector<T> result(num_samples ? num_minibatches : 0);
  sgdkern::minibatch_norms<T, Source>(network.layers, members.data(), result.size(), size, set, kThreads, result.data());
  for (std::size_t m = 0; m < result.size(); ++m) {
    double truth = 0, scale = 1e-30;
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) truth += network.product(members[m * size + i], members[m * size + j]);
      scale += size * network.product(members[m * size + i], members[m * size + i]);
    }
    const double error = std::fabs(result[m] - truth) / scale;
    if (!(error < 1000 * double(std::numeric_limits<T>::epsilon()))) {
      std::printf("minibatches of %ld, N = %ld: relative error %g\n", long(size), long(num_samples), error);
      return false;
    }
  }
  return true;
}

// Positions of random number, so that samples lie within tiles, across them and over several.
template <class T, class Source>
bool check_positions(int64_t num_samples, InstructionSet set) {
  const int64_t positions = uniform(0, 3) ? uniform(0, 9) : uniform(10, 4000 / (num_samples + 10));
  const Factor<Source> inputs(num_samples * positions, uniform(0, 40)), output_grads(num_samples * positions, uniform(0, 20));
  const bool constant_column = uniform(0, 1);
  const sgdkern::Layer<Source> layer{inputs.memory.data(), output_grads.memory.data(), inputs.features,
                                     output_grads.features, inputs.stride, output_grads.stride, constant_column};
  std::vector<T> result(num_samples * num_samples);
  if (!sgdkern::gram_positions<T, Source>(layer, num_samples, positions, set, kThreads, result.data())) return false;
  const auto row_product = [&](int64_t i, int64_t j) {
    return (inputs.product(i, j) + double(constant_column)) * output_grads.product(i, j);
  };
  for (int probe = 0; probe < 5 && num_samples; ++probe) {
    const int64_t n = uniform(0, num_samples - 1), m = uniform(0, num_samples - 1);
    double truth = 0, left = 1e-15, right = 1e-15;  // Cauchy and Schwarz; the rest is for underflow
    for (int64_t t = 0; t < positions; ++t) {
      for (int64_t s = 0; s < positions; ++s) truth += row_product(n * positions + t, m * positions + s);
      left += std::sqrt(row_product(n * positions + t, n * positions + t));
      right += std::sqrt(row_product(m * positions + t, m * positions + t));
    }
    const double error = std::fabs(result[n * num_samples + m] - truth) / (left * right);
    if (!(error < 1000 * double(std::numeric_limits<T>::epsilon())) ||
        result[n * num_samples + m] != result[m * num_samples + n]) {
      std::printf("positions, N = %ld, T = %ld: relative error %g\n", long(num_samples), long(positions), error);
      return false;
    }
  }
  return true;
}

// A convolution of random geometry, channels first or last, against a loop over samples, outputs, taps and positions.
template <class T, class Source>
bool check_patches(int64_t num_samples, InstructionSet set) {
  const bool last = uniform(0, 1);
  const int64_t channels = uniform(0, 4), kernel = uniform(1, 3), stride = uniform(1, 2), dilation = uniform(1, 2);
  const int64_t side = uniform(0, 4) ? uniform(0, 9) : uniform(11, 16), outputs = uniform(1, 19);
  const int64_t size = std::max<int64_t>(0, side - 1) * stride + (kernel - 1) * dilation + 1;
  const Factor<Source> inputs(num_samples, channels * size * size), output_grads(num_samples, outputs * side * side);
  sgdkern::PatchLayer<Source> layer{inputs.memory.data(), output_grads.memory.data(), inputs.features,
                                    output_grads.features, inputs.stride, output_grads.stride, outputs,
                                    last ? 1 : side * side, {}, {}, {}};
  const int64_t pixel = last ? channels : 1, channel = last ? 1 : size * size;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < kernel * kernel; ++i) {
      layer.taps.push_back(c * channel + (i / kernel * size + i % kernel) * dilation * pixel);
    }
  }
  for (int64_t i = 0; i < side * side; ++i) {
    layer.input_positions.push_back((i / side * size + i % side) * stride * pixel);
    layer.output_positions.push_back(i * (last ? outputs : 1));
  }
  std::vector<T> result(num_samples * num_samples);
  if (!sgdkern::patch_gram<T, Source>(layer, num_samples, set, kThreads, result.data())) return false;
  const int64_t num_columns = uniform(0, 3);
  const std::vector<T> weights = random_weights<T>(num_samples * num_columns);
  std::vector<T> products(num_samples * (1 + num_columns));
  if (!sgdkern::patch_gram_matvec<T, Source>(layer, num_samples, weights.data(), num_columns, set, kThreads,
                                             products.data()) ||
      !check_products(products, result, weights, num_samples, num_columns)) {
    return false;
  }
  const auto gradient = [&](int64_t n, int64_t o, int64_t tap) {
    double sum = 0, scale = 0;
    for (std::size_t t = 0; t < layer.input_positions.size(); ++t) {
      const double product = inputs.number(n, layer.input_positions[t] + tap) *
                             output_grads.number(n, o * layer.output_stride + layer.output_positions[t]);
      sum += product, scale += std::fabs(product);
    }
    return std::pair(sum, scale);
  };
  const int64_t num_taps = layer.taps.size();
  std::vector<T> rows(num_samples * outputs * num_taps);
  if (!sgdkern::patch_gradients<T, Source>(layer, num_samples, set, kThreads, rows.data())) return false;
  for (int probe = 0; probe < 20 && !rows.empty(); ++probe) {
    const int64_t n = uniform(0, num_samples - 1), o = uniform(0, outputs - 1), tap = uniform(0, num_taps - 1);
    const auto [truth, scale] = gradient(n, o, layer.taps[tap]);
    const double error = std::fabs(rows[(n * outputs + o) * num_taps + tap] - truth);
    if (!(error < 1000 * double(std::numeric_limits<T>::epsilon()) * (scale + 1e-30))) {  // products may underflow
      std::printf("gradients, N = %ld: error %g\n", long(num_samples), error);
      return false;
    }
  }
  for (int probe = 0; probe < 5 && num_samples; ++probe) {
    const int64_t i = uniform(0, num_samples - 1), j = uniform(0, num_samples - 1);
    double truth = 0, left = 1e-30, right = 1e-30;
    for (int64_t o = 0; o < outputs; ++o) {
      for (const int64_t tap : layer.taps) {
        const double a = gradient(i, o, tap).first, b = gradient(j, o, tap).first;
        truth += a * b, left += a * a, right += b * b;
      }
    }
    const double error = std::fabs(result[i * num_samples + j] - truth) / std::sqrt(left * right);
    if (!(error < 1000 * double(std::numeric_limits<T>::epsilon()))) {
      std::printf("patches, N = %ld: relative error %g\n", long(num_samples), error);
      return false;
    }
  }
  return true;
}

// A matrix by rows and by columns, each in an allocation of its size.
template <class T>
bool check_thin(int64_t rows, InstructionSet set) {
  const int64_t features = uniform(0, 300), columns = uniform(1, sgdkern::kThin);
  const Factor<T> by_rows(rows, features), by_columns(features, rows);
  std::vector<T> vectors(features * sgdkern::kThin);
  for (T& value : vectors) value = random_value<T>();
  for (const bool transposed : {false, true}) {
    const Factor<T>& stored = transposed ? by_columns : by_rows;
    const sgdkern::ThinMatrix<T> matrix{stored.memory.data(), rows, features, transposed ? 1 : stored.stride,
                                        transposed ? stored.stride : 1};
    if (transposed && !sgdkern::fits_columns(matrix, set)) continue;
    std::vector<T> result(rows * columns);
    sgdkern::thin_product(matrix, vectors.data(), columns, set, kThreads, result.data(), columns);
    for (int probe = 0; probe < 10 && rows; ++probe) {
      const int64_t i = uniform(0, rows - 1), c = uniform(0, columns - 1);
      double truth = 0, scale = 1e-30;
      for (int64_t k = 0; k < features; ++k) {
        const double product = double(stored.memory[transposed ? k * stored.stride + i : i * stored.stride + k]) *
                               double(vectors[k * sgdkern::kThin + c]);
        truth += product, scale += std::fabs(product);
      }
      if (!(std::fabs(result[i * columns + c] - truth) < 1000 * double(std::numeric_limits<T>::epsilon()) * scale)) {
        std::printf("thin, M = %ld, K = %ld: wrong\n", long(rows), long(features));
        return false;
      }
    }
  }
  return true;
}

// Inputs and a weight, each in an allocation of its size; at times more features than are summed at once.
template <class T>
bool check_narrow(int64_t rows, InstructionSet set) {
  const int64_t features = uniform(0, 7) ? uniform(0, 70) : uniform(1000, 2100), outputs = uniform(0, 23);
  const Factor<T> inputs(rows, features), weight(outputs, features), bias(1, outputs);
  const bool biased = uniform(0, 1);
  std::vector<T> result(rows * outputs);
  sgdkern::narrow_linear<T>({inputs.memory.data(), rows, inputs.stride}, {weight.memory.data(), outputs, weight.stride},
                            features, biased ? bias.memory.data() : nullptr, set, kThreads, result.data());
  for (int64_t place = 0; place < rows * outputs; ++place) {
    const int64_t i = place / outputs, o = place % outputs;
    double truth = biased ? bias.number(0, o) : 0, scale = std::fabs(truth) + 1e-30;
    for (int64_t k = 0; k < features; ++k) {
      const double product = inputs.number(i, k) * weight.number(o, k);
      truth += product, scale += std::fabs(product);
    }
    if (!(std::fabs(result[place] - truth) < 1000 * double(std::numeric_limits<T>::epsilon()) * scale)) {
      std::printf("narrow, N = %ld, I = %ld, O = %ld: wrong\n", long(rows), long(features), long(outputs));
      return false;
    }
  }
  return true;
}

// Planes in an allocation of their size, windows of any size that hold a number.
template <class T, class Source>
bool check_places(int64_t num_planes) {
  sgdkern::Pool pool;
  const int64_t common = uniform(2, 3);
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = uniform(1, 40), kernel = uniform(0, 1) ? common : uniform(1, 6), stride = uniform(1, 3);
    const int64_t padding = std::max(uniform(0, kernel / 2), size < kernel ? (kernel - size + 1) / 2 : int64_t{0});
    if (2 * padding > kernel) return check_places<T, Source>(num_planes);
    pool.kernel[axis] = kernel, pool.stride[axis] = stride, pool.padding[axis] = padding, pool.inputs[axis] = size;
    pool.outputs[axis] = (size + 2 * padding - kernel) / stride + 1;
  }
  const int64_t size = pool.inputs[0] * pool.inputs[1], count = pool.outputs[0] * pool.outputs[1];
  const Factor<Source> planes(1, num_planes * size);
  std::vector<int64_t> places(num_planes * count, -1);
  sgdkern::max_places<T>(planes.memory.data(), num_planes, pool, kThreads, places.data());
  for (int64_t p = 0; p < num_planes; ++p) {
    for (int64_t o = 0; o < count; ++o) {
      const auto rows = sgdkern::span(pool, 0, o / pool.outputs[1]), columns = sgdkern::span(pool, 1, o % pool.outputs[1]);
      const int64_t place = places[p * count + o], row = place / pool.inputs[1], column = place % pool.inputs[1];
      bool right = rows.first <= row && row < rows.last && columns.first <= column && column < columns.last;
      const auto number = [&](int64_t at) { return sgdkern::widen<T>(planes.memory[p * size + at]); };
      for (int64_t i = rows.first; right && i < rows.last; ++i) {
        for (int64_t j = columns.first; j < columns.last; ++j) right &= !(number(i * pool.inputs[1] + j) > number(place));
      }
      if (!right) {
        std::printf("places, %ld planes: wrong\n", long(num_planes));
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main() {
  int passed = 0, failed = 0;
  for (const auto& [set, name] : sgdkern::kInstructionSets) {
    if (!sgdkern::is_supported(set)) continue;
    ++(check<float, float>(1201, set, {{53, 31}, {4, 2}}) ? passed : failed);  // packed in blocks
    ++(check<double, double>(97, set, {{2500, 2100}, {0, 2}}) ? passed : failed);  // in slabs
    ++(check_gram_matvec<float, float>(97, set, {{2500, 2100}, {4, 2}}) ? passed : failed);
    for (const int64_t num_samples : {0, 1, 2, 13, 31, 32, 33, 95, 97, 193, 384, 389}) {
      for (const bool done : {check<float, float>(num_samples, set), check<double, double>(num_samples, set),
                              check<float, sgdkern::BFloat16>(num_samples, set),
                              check<float, sgdkern::Float16>(num_samples, set),
                              check_gram_matvec<float, float>(num_samples, set),
                              check_gram_matvec<double, double>(num_samples, set),
                              check_gram_matvec<float, sgdkern::BFloat16>(num_samples, set),
                              check_linear<float, float>(num_samples, set),
                              check_linear<double, double>(num_samples, set),
                              check_minibatches<float, float>(num_samples, set),
                              check_minibatches<double, double>(num_samples, set),
                              check_minibatches<float, sgdkern::BFloat16>(num_samples, set),
                              check_minibatches<float, sgdkern::Float16>(num_samples, set),
                              check_positions<float, float>(num_samples, set),
                              check_positions<double, double>(num_samples, set),
                              check_positions<float, sgdkern::BFloat16>(num_samples, set),
                              check_positions<float, sgdkern::Float16>(num_samples, set),
                              check_patches<float, float>(num_samples, set),
                              check_patches<double, double>(num_samples, set),
                              check_patches<float, sgdkern::BFloat16>(num_samples, set),
                              check_patches<float, sgdkern::Float16>(num_samples, set),
                              check_thin<float>(num_samples, set), check_thin<double>(num_samples, set),
                              check_narrow<float>(num_samples, set), check_narrow<double>(num_samples, set),
                              check_places<float, float>(num_samples), check_places<double, double>(num_samples),
                              check_places<float, sgdkern::BFloat16>(num_samples),
                              check_places<float, sgdkern::Float16>(num_samples)}) {
        ++(done ? passed : failed);
      }
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
