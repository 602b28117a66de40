// Packed gradients as rows, for one instruction set; see instruction_sets.inl.

// rows [samples, features] = packed [features, kPanel] transposed.
template <class T>
SGDKERN_TARGET void unpack(const T* packed, int64_t features, int64_t samples, T* rows, int64_t stride) {
  using S = Shape<T>;
  constexpr int n = S::kLanes;
  for (int64_t k0 = 0; k0 < features; k0 += n) {
    const int64_t width = std::min<int64_t>(n, features - k0);
    for (int64_t first = 0; first < samples; first += n) {
      typename S::Vector square[n] = {};
      for (int64_t k = 0; k < width; ++k) {
        std::memcpy(&square[k], packed + (k0 + k) * S::kPanel + first, sizeof(square[k]));
      }
      transpose<T>(square);
      for (int64_t i = 0; i < std::min<int64_t>(n, samples - first); ++i) {
        std::memcpy(rows + (first + i) * stride + k0, &square[i], width * sizeof(T));
      }
    }
  }
}

template <class T>
constexpr RowKernels<T> kFamily<RowKernels<T>> = {unpack<T>};
