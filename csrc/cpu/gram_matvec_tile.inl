// The arithmetic of gram_matvec.h for one instruction set; see instruction_sets.inl.

template <class T>
SGDKERN_INLINE double sum_of(const typename Shape<T>::Vector& vector) {
  double sum = 0;
  for (int k = 0; k < Shape<T>::kLanes; ++k) sum += double(vector[k]);
  return sum;
}

// One tile times one column of W, and its transpose times another part of that column.
template <class T>
SGDKERN_INLINE void multiply(const T* total, int64_t rows, int64_t vectors, const T* of_columns, const T* of_rows,
                             double* row_products, double* column_products) {
  using Vector = typename Shape<T>::Vector;
  alignas(64) Vector sums[kTileSamples / Shape<T>::kLanes] = {};
  const Vector* across = reinterpret_cast<const Vector*>(of_columns);
  for (int64_t i = 0; i < rows; ++i) {
    const Vector* row = reinterpret_cast<const Vector*>(total + i * kTileSamples);
    Vector sum = {};
    for (int64_t v = 0; v < vectors; ++v) {
      sum += row[v] * across[v];
      if (column_products) sums[v] += row[v] * of_rows[i];
    }
    row_products[i] = sum_of<T>(sum);
  }
  if (!column_products) return;
  const T* flat = reinterpret_cast<const T*>(sums);
  for (int64_t j = 0; j < vectors * Shape<T>::kLanes; ++j) column_products[j] = double(flat[j]);
}

template <class T>
SGDKERN_TARGET void multiply_tile(Sums<T>& sums, const Tile& tile, const T* weights, int64_t num_columns, int64_t stride,
                                  double* of_rows, double* of_columns, double* diagonal) {
  constexpr int n = Shape<T>::kLanes;
  const auto [row0, rows, column0, columns] = tile;
  const int64_t vectors = (columns + n - 1) / n;
  const bool on_diagonal = row0 == column0;
  if (on_diagonal) {  // whole, so that it is its own mirror image
    for (int64_t i = 0; i < rows; ++i) {
      diagonal[row0 + i] = double(sums.total[i * kTileSamples + i]);
      for (int64_t j = 0; j < i; ++j) sums.total[j * kTileSamples + i] = sums.total[i * kTileSamples + j];
    }
  }
  for (int64_t i = 0; i < rows; ++i) {  // what fills the last vector may be anything times zero
    for (int64_t j = columns; j < vectors * n; ++j) sums.total[i * kTileSamples + j] = T{0};
  }
  for (int64_t c = 0; c < num_columns; ++c) {
    const T* column = weights + c * stride;
    multiply<T>(sums.total, rows, vectors, column + column0, column + row0, of_rows + c * stride,
                on_diagonal ? nullptr : of_columns + c * stride);
  }
}

template <class T>
constexpr GramMatvecKernels<T> kFamily<GramMatvecKernels<T>> = {multiply_tile<T>};
