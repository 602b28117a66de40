// The arithmetic of linear_gram_matvec.h for one instruction set; see instruction_sets.inl.

// Vectors from feature `first` on of some rows of A, in their place or in a copy.
template <class T, int Vectors, class Source>
SGDKERN_INLINE Strided<T> features_of(const Layer<Source>& layer, int64_t row, int64_t rows, int64_t first, T* copy) {
  constexpr int width = Vectors * Shape<T>::kLanes;
  const Source* from = layer.inputs + row * layer.inputs_stride + first;
  const int64_t left = layer.in_features - first;
  if constexpr (std::is_same_v<T, Source>) {
    if (left >= width) return {from, layer.inputs_stride};
  }
  for (int64_t r = 0; r < rows; ++r, from += layer.inputs_stride) {
    copy_features(from, left, width, layer.constant_column, copy + r * width);
  }
  return {copy, width};
}

// Asks for such vectors, which the next block of rows needs: a few with each register block.
template <class T, int Vectors, class Source>
SGDKERN_INLINE void prefetch_features(const Layer<Source>& layer, int64_t row, int64_t rows, int64_t first) {
  const Source* from = layer.inputs + row * layer.inputs_stride + first;
  for (int64_t r = 0; r < rows; ++r, from += layer.inputs_stride) {
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(from + v * Shape<T>::kLanes, 0, 2);
  }
}

// V [chunks, outputs, features of a chunk] += scaled [N, outputs] times A, for some rows, one chunk of features from vector
// `at` on, and outputs begin ... end - 1.
template <class T, class Source>
SGDKERN_TARGET void add_sums(const Layer<Source>& layer, int64_t row, int64_t rows, int64_t at, const T* scaled,
                             int64_t outputs, int64_t begin, int64_t end, T* sums) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = Shape<T>::kLanes;
  alignas(64) T copy[kBlockRows * kWideVectors * n];
  const int64_t vectors = (layer.in_features + layer.constant_column + n - 1) / n;
  with_count<kWideVectors>(vectors - at, [&]<int Vectors>() SGDKERN_TARGET __attribute__((always_inline)) {
    const Strided<T> features = features_of<T, Vectors>(layer, row, rows, at * n, copy);
    for (int64_t o = begin; o < end; o += kSteps) {
      with_count<kSteps>(end - o, [&]<int Steps>() SGDKERN_TARGET __attribute__((always_inline)) {
        const int64_t first = rows * (o - begin) / (end - begin), last = rows * (o - begin + Steps) / (end - begin);
        prefetch_features<T, Vectors>(layer, row + kBlockRows + first, last - first, at * n);
        Vector block[Steps][Vectors] = {};
        add_block<T, Steps, Vectors>(Strided<T>{scaled + o, outputs}, 1, features, rows, block);
        Vector* to = reinterpret_cast<Vector*>(sums + (at * outputs + o * Vectors) * n);
        for (int s = 0; s < Steps; ++s) {
          for (int v = 0; v < Vectors; ++v) *to++ += block[s][v];
        }
      });
    }
  });
}

// ||d||^2, in float64 for its range: a saturated loss has gradients whose squares leave float32's
template <class T, class Source>
SGDKERN_INLINE double squared_length(const Source* d, int64_t count) {
  constexpr int n = Shape<T>::kLanes;
  double lanes[n] = {};
  int64_t k = 0;
  for (; k + n <= count; k += n) {
    for (int lane = 0; lane < n; ++lane) {
      const double number = widen<T>(d[k + lane]);
      lanes[lane] += number * number;
    }
  }
  double sum = 0;
  for (; k < count; ++k) sum += double(widen<T>(d[k])) * double(widen<T>(d[k]));
  for (int lane = 0; lane < n; ++lane) sum += lanes[lane];
  return sum;
}

// result [N, 1 + num_columns] of up to kAppliedRows rows from `row` on: their squared norms, and a_n (V^T d_n).
template <class T, class Source>
SGDKERN_TARGET void apply(const Layer<Source>& layer, int64_t row, int64_t rows, const T* sums, int64_t num_columns,
                          T* result) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = Shape<T>::kLanes;
  const int64_t out = layer.out_features, vectors = (layer.in_features + layer.constant_column + n - 1) / n;
  const Source* const grads = layer.output_grads + row * layer.output_grads_stride;
  alignas(64) T copy[kAppliedRows * kWideVectors * n];
  Vector lengths[kAppliedRows] = {};  // partial sums of ||a_n||^2
  for (int64_t column = 0; column < std::max<int64_t>(num_columns, 1); ++column) {
    const int64_t count = column < num_columns ? out : 0;
    Vector totals[kAppliedRows] = {};
    for (int64_t at = 0; at < vectors; at += kWideVectors) {
      with_count<kWideVectors>(vectors - at, [&]<int Vectors>() SGDKERN_TARGET __attribute__((always_inline)) {
        const Strided<T> features = features_of<T, Vectors>(layer, row, rows, at * n, copy);
        const T* const chunk = sums + (at * num_columns + column * Vectors) * n * out;
        for (int64_t r = 0; r < rows; r += kSteps) {
          with_count<kSteps>(rows - r, [&]<int Steps>() SGDKERN_TARGET __attribute__((always_inline)) {
            const T* a = features.first + r * features.stride;
            for (int s = 0; s < Steps; ++s) {
              for (int v = 0; v < Vectors; ++v) __builtin_prefetch(a + s * features.stride + v * n);
            }
            prefetch_features<T, Vectors>(layer, row + kAppliedRows + r, Steps, at * n);
            Vector block[Steps][Vectors] = {};
            add_block<T, Steps, Vectors>(Strided<Source>{grads + r * layer.output_grads_stride, 1},
                                         layer.output_grads_stride, Strided<T>{chunk, Vectors * n}, count, block);
            for (int s = 0; s < Steps; ++s, a += features.stride) {
              Vector total = totals[r + s], length = lengths[r + s];
              for (int v = 0; v < Vectors; ++v) {
                const Vector feature = load<T>(a + v * n);
                total += block[s][v] * feature;
                length += feature * feature;
              }
              totals[r + s] = total;
              if (column == 0) lengths[r + s] = length;
            }
          });
        }
      });
    }
    for (int64_t r = 0; r < rows && column < num_columns; ++r) {
      result[(row + r) * (1 + num_columns) + 1 + column] = static_cast<T>(sum_of_lanes<T>(totals[r]));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const double of_grads = squared_length<T>(grads + r * layer.output_grads_stride, out);
    result[(row + r) * (1 + num_columns)] = static_cast<T>(sum_of_lanes<T>(lengths[r]) * of_grads);
  }
}

template <class T, class Source>
constexpr LinearKernels<T, Source> kFamily<LinearKernels<T, Source>> = {Shape<T>::kLanes, kWideVectors,
                                                                        add_sums<T, Source>, apply<T, Source>};
