// The products of patch_gram.h for one instruction set; see instruction_sets.inl.

// A tile of K on or below the diagonal += rows times columns of packed gradients [N / kPanel, features, kPanel].
template <class T>
SGDKERN_TARGET void add_products(const T* gradients, int64_t features, int64_t num_samples, int64_t tile, int64_t row0,
                                 int64_t column0, Sums<T>& sums, T* gram) {
  using S = Shape<T>;
  const bool diagonal = row0 == column0;
  const int64_t rows = std::min(tile, num_samples - row0), columns = std::min(tile, num_samples - column0);
  const Sink<T> sink{sums.first, sums.second, sums.total, T{0}, true, true, false, true};
  product<T>(gradients + row0 * features, gradients + column0 * features, features, (rows + S::kPanel - 1) / S::kPanel,
             (columns + S::kPanel - 1) / S::kPanel, diagonal, sink, true);
  for (int64_t i = 0; i < rows; ++i) {
    T* row = gram + (row0 + i) * num_samples + column0;
    const T* sum = sums.first + i * kTileSamples;
    for (int64_t j = 0; j < (diagonal ? i + 1 : columns); ++j) row[j] += sum[j];
  }
}

template <class T>
constexpr PatchKernels<T> kFamily<PatchKernels<T>> = {add_products<T>};
