// The arithmetic of linear_gram_matvec.h for one instruction set; see instruction_sets.inl.

constexpr int kSteps = SGDKERN_ROWS > 4 ? 6 : 4;          // broadcast numbers of A at a time, and
constexpr int kWideVectors = SGDKERN_ROWS > 4 ? 4 : 2;    // vectors beside them: 24 sums in 32 registers, or 8 in 16

// sums [Steps, Vectors] += over `count`: inputs [k * along + i * across] times other [k * width + v].
template <class T, int Steps, int Vectors, class Source>
SGDKERN_INLINE void add_block(const Source* inputs, int64_t along, int64_t across, int64_t count, const T* other,
                              int64_t width, typename Shape<T>::Vector (&sums)[Steps][Vectors]) {
  using Vector = typename Shape<T>::Vector;
  for (int64_t k = 0; k < count; ++k, inputs += along, other += width) {
    Vector operand[Vectors];
    for (int v = 0; v < Vectors; ++v) operand[v] = reinterpret_cast<const Vector*>(other)[v];
    for (int i = 0; i < Steps; ++i) {
      const T number = widen<T>(inputs[i * across]);
      for (int v = 0; v < Vectors; ++v) sums[i][v] += number * operand[v];
    }
  }
}

// Calls body<Vectors>(at) on a row of `width` numbers, as many vectors at a time as fit.
template <class T, class Body>
SGDKERN_INLINE void over_vectors(int64_t width, const Body& body) {
  constexpr int n = Shape<T>::kLanes;
  int64_t at = 0;
  for (; at + kWideVectors * n <= width; at += kWideVectors * n) body.template operator()<kWideVectors>(at);
  if constexpr (kWideVectors == 4) {
    if (at + 3 * n == width) return body.template operator()<3>(at);
    if (at + 2 * n == width) return body.template operator()<2>(at);
  }
  if (at < width) body.template operator()<1>(at);
}

// sums [I, width] += A^T times scaled, for inputs first ... last - 1 and some rows.
template <class T, class Source>
SGDKERN_TARGET void add_sums(const Source* inputs, int64_t stride, int64_t rows, int64_t first, int64_t last,
                             const T* scaled, int64_t width, T* sums) {
  using Vector = typename Shape<T>::Vector;
  over_vectors<T>(width, [&]<int Vectors>(int64_t at) SGDKERN_TARGET __attribute__((always_inline)) {
    const auto add = [&]<int Steps>(int64_t i) SGDKERN_TARGET __attribute__((always_inline)) {
      Vector block[Steps][Vectors] = {};
      add_block<T, Steps, Vectors>(inputs + i, stride, 1, rows, scaled + at, width, block);
      for (int s = 0; s < Steps; ++s) {
        Vector* to = reinterpret_cast<Vector*>(sums + (i + s) * width + at);
        for (int v = 0; v < Vectors; ++v) to[v] += block[s][v];
      }
    };
    int64_t i = first;
    for (; i + kSteps <= last; i += kSteps) add.template operator()<kSteps>(i);
    for (; i < last; ++i) add.template operator()<1>(i);
  });
}

// result [N, 1 + num_columns] of rows first ... last - 1: their squared norms, and D times A V^T summed over outputs.
template <class T, class Source>
SGDKERN_TARGET void apply(const Layer<Source>& layer, int64_t first, int64_t last, const T* sums, int64_t width,
                          int64_t num_columns, T* result) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = Shape<T>::kLanes;
  const int64_t in = layer.in_features, out = layer.out_features;
  const T* const of_bias = sums + in * width;
  alignas(64) T rows[kSteps][kWideVectors * n];
  const auto take = [&]<int Steps>(int64_t row) SGDKERN_TARGET __attribute__((always_inline)) {
    const Source* const inputs = layer.inputs + row * layer.inputs_stride;
    for (int s = 0; s < Steps; ++s) {
      const Source *a = inputs + s * layer.inputs_stride, *d = layer.output_grads + (row + s) * layer.output_grads_stride;
      T of_inputs[n] = {};
      int64_t k = 0;
      for (; k + n <= in; k += n) {
        for (int lane = 0; lane < n; ++lane) of_inputs[lane] += widen<T>(a[k + lane]) * widen<T>(a[k + lane]);
      }
      double total = layer.constant_column ? 1 : 0, of_grads = 0;
      for (; k < in; ++k) total += double(widen<T>(a[k])) * double(widen<T>(a[k]));
      for (int lane = 0; lane < n; ++lane) total += double(of_inputs[lane]);
      for (int64_t o = 0; o < out; ++o) of_grads += double(widen<T>(d[o])) * double(widen<T>(d[o]));
      result[(row + s) * (1 + num_columns)] = static_cast<T>(total * of_grads);
    }
    double products[Steps] = {};
    int64_t column = 0, output = 0;  // of the next number in a row
    over_vectors<T>(width, [&]<int Vectors>(int64_t at) SGDKERN_TARGET __attribute__((always_inline)) {
      Vector block[Steps][Vectors] = {};
      add_block<T, Steps, Vectors>(inputs, 1, layer.inputs_stride, in, sums + at, width, block);
      for (int s = 0; s < Steps; ++s) {
        for (int v = 0; v < Vectors; ++v) {
          if (layer.constant_column) block[s][v] += reinterpret_cast<const Vector*>(of_bias + at)[v];
          std::memcpy(rows[s] + v * n, &block[s][v], sizeof(Vector));
        }
      }
      for (int64_t j = 0; j < Vectors * n && column < num_columns;) {
        const int64_t count = std::min<int64_t>(Vectors * n - j, out - output);
        for (int s = 0; s < Steps; ++s) {
          const Source* d = layer.output_grads + (row + s) * layer.output_grads_stride + output;
          double sum = 0;
          for (int64_t o = 0; o < count; ++o) sum += double(rows[s][j + o]) * double(widen<T>(d[o]));
          products[s] += sum;
        }
        j += count, output += count;
        if (output < out) continue;
        for (int s = 0; s < Steps; ++s) {
          result[(row + s) * (1 + num_columns) + 1 + column] = static_cast<T>(products[s]);
          products[s] = 0;
        }
        ++column, output = 0;
      }
    });
    if (out == 0) {
      for (int s = 0; s < Steps; ++s) std::fill_n(result + (row + s) * (1 + num_columns) + 1, num_columns, T{0});
    }
  };
  int64_t row = first;
  for (; row + kSteps <= last; row += kSteps) take.template operator()<kSteps>(row);
  for (; row < last; ++row) take.template operator()<1>(row);
}

template <class T, class Source>
constexpr LinearKernels<T, Source> kLinearKernels = {Shape<T>::kLanes, kSteps, add_sums<T, Source>, apply<T, Source>};
