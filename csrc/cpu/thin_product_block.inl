// The arithmetic of thin_product.h for one instruction set; see instruction_sets.inl.

template <class T>
constexpr int kThinVectors = kThin / Shape<T>::kLanes;  // of a row of vectors
template <class T>
constexpr int kThinRows = std::max(1, SGDKERN_ROWS * SGDKERN_VECTORS / kThinVectors<T>);
template <class T>
constexpr int kThinColumns = Shape<T>::kPanel;

// result [Rows, kThin] = rows [Rows, features] times vectors [features, kThin].
template <class T, int Rows>
SGDKERN_TARGET void thin_rows(const T* rows, int64_t stride, int64_t features, const T* vectors, T* result) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = kThinVectors<T>, line = 64 / sizeof(T);
  Vector totals[Rows][n] = {};
  for (int64_t block = 0; block < features; block += kThinFeatures) {
    const int64_t stop = std::min(features, block + kThinFeatures);
    Vector sums[Rows][n] = {};
    for (int64_t first = block; first < stop; first += line) {
      for (int i = 0; i < Rows; ++i) __builtin_prefetch(rows + i * stride + first + kThinAhead, 0, 3);
      for (int64_t k = first; k < std::min(stop, first + line); ++k) {
        Vector operand[n];
        std::memcpy(operand, vectors + k * kThin, sizeof(operand));
        for (int i = 0; i < Rows; ++i) {
          for (int j = 0; j < n; ++j) sums[i][j] += rows[i * stride + k] * operand[j];
        }
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < n; ++j) totals[i][j] += sums[i][j];
    }
  }
  std::memcpy(result, totals, sizeof(totals));
}

// result [kThinColumns, kThin] = columns [features, kThinColumns] transposed, times vectors [features, kThin].
template <class T>
SGDKERN_TARGET void thin_columns(const T* columns, int64_t stride, int64_t features, const T* vectors, T* result) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  Vector totals[kThin][S::kVectors] = {};
  for (int64_t block = 0; block < features; block += kThinFeatures) {
    const int64_t stop = std::min(features, block + kThinFeatures);
    for (int first = 0; first < kThin; first += S::kRows) {  // the block's columns stay in the first-level cache
      Vector sums[S::kRows][S::kVectors] = {};
      for (int64_t k = block; k < stop; ++k) {
        const T* row = columns + k * stride;
        Vector operand[S::kVectors];
        std::memcpy(operand, row, sizeof(operand));
        if (first == 0) {
          for (int j = 0; j < S::kVectors; ++j) __builtin_prefetch(row + kThinRowsAhead * stride + j * S::kLanes, 0, 3);
        }
        for (int i = 0; i < S::kRows; ++i) {
          for (int j = 0; j < S::kVectors; ++j) sums[i][j] += vectors[k * kThin + first + i] * operand[j];
        }
      }
      for (int i = 0; i < S::kRows; ++i) {
        for (int j = 0; j < S::kVectors; ++j) totals[first + i][j] += sums[i][j];
      }
    }
  }
  T transposed[kThin][S::kPanel];
  std::memcpy(transposed, totals, sizeof(totals));
  for (int j = 0; j < S::kPanel; ++j) {
    for (int i = 0; i < kThin; ++i) result[j * kThin + i] = transposed[i][j];
  }
}

template <class T>
constexpr ThinKernels<T> kFamily<ThinKernels<T>> = {thin_rows<T, kThinRows<T>>, thin_rows<T, 1>, thin_columns<T>,
                                                    kThinRows<T>, kThinColumns<T>};
