// The arithmetic of patch_gram_matvec.h for one instruction set; see instruction_sets.inl. Gradients of one panel of
// samples are [features, kPanel]: a vector holds one number of several samples.

// to [kPanel] += from, in float64.
template <class T>
SGDKERN_INLINE void add_wide(const typename Shape<T>::Vector (&from)[Shape<T>::kVectors], double* to) {
  T values[Shape<T>::kPanel];
  std::memcpy(values, from, sizeof(values));
  for (int i = 0; i < Shape<T>::kPanel; ++i) to[i] += double(values[i]);
}

// norms [kPanel] += squares over features; sums [num_columns, features, kLanes] (+)= samples' gradients times weights.
template <class T>
SGDKERN_TARGET void add_panel(const T* gradients, int64_t features, const T* weights, int64_t stride, int64_t num_columns,
                              bool begins, T* sums, double* norms) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  const Vector* gradient = reinterpret_cast<const Vector*>(gradients);
  for (int64_t first = 0; first < features; first += kSummedFeatures) {
    const int64_t last = std::min(first + kSummedFeatures, features);
    Vector even[S::kVectors] = {}, odd[S::kVectors] = {};
    int64_t f = first;
    for (; f + 2 <= last; f += 2) {
      for (int v = 0; v < S::kVectors; ++v) {
        const Vector one = gradient[f * S::kVectors + v], other = gradient[(f + 1) * S::kVectors + v];
        even[v] += one * one;
        odd[v] += other * other;
      }
    }
    for (int v = 0; v < S::kVectors; ++v) {
      if (f < last) even[v] += gradient[f * S::kVectors + v] * gradient[f * S::kVectors + v];
      even[v] += odd[v];
    }
    add_wide<T>(even, norms);
    for (int64_t c = 0; c < num_columns; ++c) {
      const Vector* weight = reinterpret_cast<const Vector*>(weights + c * stride);
      Vector* sum = reinterpret_cast<Vector*>(sums) + c * features;
      for (int64_t k = first; k < last; ++k) {
        Vector value = gradient[k * S::kVectors] * weight[0];
        for (int v = 1; v < S::kVectors; ++v) value += gradient[k * S::kVectors + v] * weight[v];
        sum[k] = begins ? value : sum[k] + value;
      }
    }
  }
}

// vector [features], and room for a vector register more = sums [features, kLanes] over lanes.
template <class T>
SGDKERN_TARGET void sum_features(const T* sums, int64_t features, T* vector) {
  constexpr int n = Shape<T>::kLanes;
  using Vector = typename Shape<T>::Vector;
  for (int64_t first = 0; first < features; first += n) {
    Vector rows[n];
    for (int i = 0; i < n; ++i) rows[i] = first + i < features ? reinterpret_cast<const Vector*>(sums)[first + i] : Vector{};
    sum_lanes<T>(rows);
    std::memcpy(vector + first, &rows[0], sizeof(rows[0]));
  }
}

// products [num_columns] rows of `stride` [kPanel] += gradients times vectors, over features.
template <class T>
SGDKERN_TARGET void apply_panel(const T* gradients, int64_t features, const T* vectors, int64_t vectors_stride,
                                int64_t num_columns, double* products, int64_t stride) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  constexpr int kChains = 4;  // sums that do not wait for each other
  const Vector* gradient = reinterpret_cast<const Vector*>(gradients);
  for (int64_t first = 0; first < features; first += kSummedFeatures) {
    const int64_t last = std::min(first + kSummedFeatures, features);
    for (int64_t c = 0; c < num_columns; ++c) {
      const T* vector = vectors + c * vectors_stride;
      Vector sums[kChains][S::kVectors] = {};
      int64_t f = first;
      for (; f + kChains <= last; f += kChains) {
        for (int i = 0; i < kChains; ++i) {
          for (int v = 0; v < S::kVectors; ++v) sums[i][v] += gradient[(f + i) * S::kVectors + v] * vector[f + i];
        }
      }
      for (; f < last; ++f) {
        for (int v = 0; v < S::kVectors; ++v) sums[0][v] += gradient[f * S::kVectors + v] * vector[f];
      }
      for (int v = 0; v < S::kVectors; ++v) sums[0][v] = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
      add_wide<T>(sums[0], products + c * stride);
    }
  }
}

template <class T>
constexpr PatchMatvecKernels<T> kFamily<PatchMatvecKernels<T>> = {Shape<T>::kLanes, add_panel<T>, sum_features<T>,
                                                                  apply_panel<T>};
