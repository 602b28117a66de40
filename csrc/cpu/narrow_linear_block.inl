// The arithmetic of narrow_linear.h for one instruction set; see instruction_sets.inl.

// Pointers to kSide rows from `row` on; past the last one they repeat it.
template <class T>
SGDKERN_INLINE void point_at_rows(const Rows<T>& rows, int64_t row, int64_t feature, const T* (&pointers)[kSide]) {
  for (int i = 0; i < kSide; ++i) pointers[i] = rows.first + std::min(row + i, rows.count - 1) * rows.stride + feature;
}

// result [rows of X, rows of W] = their inner products, plus the bias; asks for the rows of X that follow.
template <class T>
SGDKERN_TARGET void narrow_outputs(const Rows<T>& inputs, int64_t following, const Rows<T>& weight, int64_t features,
                                   const T* bias, T* result) {
  constexpr int n = Shape<T>::kLanes, padded = (kPairs + n - 1) / n * n;
  for (int64_t feature = 0; feature == 0 || feature < features; feature += kNarrowFeatures) {
    const int64_t some = std::min(kNarrowFeatures, features - feature);
    for (int64_t output = 0; output < weight.count; output += kSide) {
      const int64_t outputs = std::min<int64_t>(kSide, weight.count - output);
      const T *left[kSide], *right[kSide];
      point_at_rows(weight, output, feature, right);
      for (int64_t r = following * output / weight.count; r < following * (output + outputs) / weight.count; ++r) {
        const T* row = inputs.first + (inputs.count + r) * inputs.stride + feature;
        for (int64_t k = 0; k < some; k += 64 / sizeof(T)) __builtin_prefetch(row + k, 0, 2);
      }
      for (int64_t row = 0; row < inputs.count; row += kSide) {
        const int64_t rows = std::min<int64_t>(kSide, inputs.count - row);
        alignas(64) T products[padded];
        point_at_rows(inputs, row, feature, left);
        inner_products<T>(left, right, some, products);
        for (int64_t i = 0; i < rows; ++i) {
          T* to = result + (row + i) * weight.count + output;
          for (int64_t j = 0; j < outputs; ++j) {
            const T before = feature ? to[j] : T{0};
            const T sum = before + products[i * kSide + j];
            to[j] = bias && feature + some == features ? sum + bias[output + j] : sum;
          }
        }
      }
    }
  }
}

template <class T>
constexpr NarrowKernels<T> kFamily<NarrowKernels<T>> = {narrow_outputs<T>};
