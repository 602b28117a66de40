// The arithmetic of gram.h for one instruction set; see instruction_sets.inl. All is inlined into `pack` and `gram_tile`,
// so that no vector crosses a function boundary.

template <class T>
struct Shape {
  static constexpr int kLanes = SGDKERN_VECTOR_BYTES / sizeof(T);
  static constexpr int kVectors = SGDKERN_VECTORS;
  static constexpr int kRows = SGDKERN_ROWS;
  static constexpr int kPanel = kVectors * kLanes;  // samples in a packed panel = columns of a register block
  static_assert(kPanel % kRows == 0 && kTileSamples % (2 * kPanel) == 0);
  typedef T Vector __attribute__((vector_size(SGDKERN_VECTOR_BYTES)));
};

template <class Vector, std::size_t... I>
SGDKERN_INLINE void interleave(const Vector& a, const Vector& b, Vector& low, Vector& high, std::index_sequence<I...>) {
  constexpr int n = sizeof...(I);
  low = __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
  high = __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...);
}

// Transposes a square of kLanes vectors in log2(kLanes) perfect shuffles.
template <class T>
SGDKERN_INLINE void transpose(typename Shape<T>::Vector (&square)[Shape<T>::kLanes]) {
  constexpr int n = Shape<T>::kLanes;
  for (int stage = 1; stage < n; stage *= 2) {
    typename Shape<T>::Vector shuffled[n];
    for (int i = 0; i < n / 2; ++i) {
      interleave(square[i], square[i + n / 2], shuffled[2 * i], shuffled[2 * i + 1], std::make_index_sequence<n>{});
    }
    for (int i = 0; i < n; ++i) square[i] = shuffled[i];
  }
}

// square [kLanes, kLanes]: some features of some rows, widened, and transposed. What lies beyond either becomes zeros.
template <class T, class Source>
SGDKERN_INLINE void load_square(const Source* rows, int64_t stride, int64_t samples, int64_t width,
                                typename Shape<T>::Vector (&square)[Shape<T>::kLanes]) {
  constexpr int n = Shape<T>::kLanes;
  for (int i = 0; i < n; ++i) {
    T values[n] = {};
    if (i < samples) {
      const Source* row = rows + i * stride;
      if (width == n) {
        for (int k = 0; k < n; ++k) values[k] = widen<T>(row[k]);
        __builtin_prefetch(row + kPrefetchFeatures, 0, 2);
      } else {
        for (int64_t k = 0; k < width; ++k) values[k] = widen<T>(row[k]);
      }
    }
    std::memcpy(&square[i], values, sizeof(values));
  }
  transpose<T>(square);
}

// packed [features, kPanel] = rows [kPanel, features] transposed and widened; samples past the last one become zeros.
template <class T, class Source>
SGDKERN_TARGET void pack(const Source* rows, int64_t stride, int64_t samples, int64_t features, T* packed) {
  using S = Shape<T>;
  constexpr int n = S::kLanes;
  for (int64_t k0 = 0; k0 < features; k0 += n) {
    const int64_t width = std::min<int64_t>(n, features - k0);
    for (int64_t first = 0; first < S::kPanel; first += n) {
      typename S::Vector square[n];
      load_square<T>(rows + first * stride + k0, stride, samples - first, width, square);
      for (int64_t k = 0; k < width; ++k) {
        std::memcpy(packed + (k0 + k) * S::kPanel + first, &square[k], sizeof(square[k]));
      }
    }
  }
}

// Where the sums of a register block go.
template <class T>
struct Sink {
  T *first, *second, *total;  // of Sums
  T constant;                 // 1 where the layer has a constant column: it adds 1 to all of A A^T
  bool into_first, begins, ends, first_layer;  // begins, ends: the features of the factor, of which these are some
};

template <class T, int Vectors>
SGDKERN_INLINE void register_block(const T* left, const T* right, int64_t features, const Sink<T>& sink, int64_t at) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  Vector sums[S::kRows][Vectors];
  for (int i = 0; i < S::kRows; ++i) {
    for (int j = 0; j < Vectors; ++j) sums[i][j] = Vector{};
  }
  for (int64_t k = 0; k < features; ++k, left += S::kPanel, right += S::kPanel) {
    Vector operand[Vectors];
    for (int j = 0; j < Vectors; ++j) operand[j] = reinterpret_cast<const Vector*>(right)[j];
    for (int i = 0; i < S::kRows; ++i) {
      for (int j = 0; j < Vectors; ++j) sums[i][j] += left[i] * operand[j];
    }
  }
  for (int i = 0; i < S::kRows; ++i, at += kTileSamples) {
    for (int j = 0; j < Vectors; ++j) {
      Vector* partial = reinterpret_cast<Vector*>((sink.into_first ? sink.first : sink.second) + at) + j;
      Vector value = sink.begins ? sums[i][j] : *partial + sums[i][j];
      if (!sink.ends) {
        *partial = value;
        continue;
      }
      Vector* total = reinterpret_cast<Vector*>(sink.total + at) + j;
      value *= reinterpret_cast<const Vector*>(sink.first + at)[j] + sink.constant;
      *total = sink.first_layer ? value : *total + value;
    }
  }
}

// One product over a tile: left [row_panels, features, kPanel] times right [column_panels, features, kPanel].
template <class T>
SGDKERN_INLINE void product(const T* left, const T* right, int64_t features, int64_t row_panels, int64_t column_panels,
                            bool diagonal, Sink<T> sink, bool into_first) {
  using S = Shape<T>;
  const bool begins = sink.begins, ends = sink.ends;
  sink.into_first = into_first;
  int64_t k = 0;
  do {  // once even without features: the sums are zeros then
    const int64_t count = std::min<int64_t>(kBlockFeatures, features - k);
    sink.begins = begins && k == 0;
    sink.ends = ends && !into_first && k + count == features;
    for (int64_t q = 0; q < column_panels; ++q) {
      const T* right_panel = right + (q * features + k) * S::kPanel;
      for (int64_t p = diagonal ? q : 0; p < row_panels; ++p) {
        const T* left_panel = left + (p * features + k) * S::kPanel;
        for (int row = 0; row < S::kPanel; row += S::kRows) {
          const int64_t at = (p * S::kPanel + row) * kTileSamples + q * S::kPanel;
          if (diagonal && p == q && row + S::kRows <= S::kLanes) {  // the other vectors lie above the diagonal
            register_block<T, 1>(left_panel + row, right_panel, count, sink, at);
          } else {
            register_block<T, S::kVectors>(left_panel + row, right_panel, count, sink, at);
          }
        }
      }
    }
    k += count;
  } while (k < features);
}

// Sums of a tile += those over a slab's features.
template <class T>
SGDKERN_TARGET void add_to_tile(const Slab& slab, const T* panels, int64_t room, const Tile& tile, int64_t row_at,
                                int64_t column_at, Sums<T>& sums) {
  using S = Shape<T>;
  const bool diagonal = tile.row == tile.column;
  const int64_t row_panels = (tile.rows + S::kPanel - 1) / S::kPanel;
  const int64_t column_panels = (tile.columns + S::kPanel - 1) / S::kPanel;
  for (const Part& part : slab) {
    const T* packed = panels + part.before * room;
    const T *left = packed + row_at * part.features, *right = packed + column_at * part.features;
    const Sink<T> sink{sums.first, sums.second, sums.total, part.constant_column ? T{1} : T{0}, false, part.begins,
                       part.ends, part.layer == 0};
    if (part.of_inputs) {  // compiled twice, so that neither asks where its sums go
      product<T>(left, right, part.features, row_panels, column_panels, diagonal, sink, true);
    } else {
      product<T>(left, right, part.features, row_panels, column_panels, diagonal, sink, false);
    }
  }
}

// A tile, and its mirror image.
template <class T>
SGDKERN_TARGET void write_tile(const Sums<T>& sums, const Tile& tile, int64_t num_samples, T* gram) {
  const bool diagonal = tile.row == tile.column;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t count = diagonal ? i + 1 : tile.columns;
    std::memcpy(gram + (tile.row + i) * num_samples + tile.column, sums.total + i * kTileSamples, count * sizeof(T));
  }
  for (int64_t j = 0; j < tile.columns; ++j) {
    T* mirrored = gram + (tile.column + j) * num_samples + tile.row;
    for (int64_t i = diagonal ? j + 1 : 0; i < tile.rows; ++i) mirrored[i] = sums.total[i * kTileSamples + j];
  }
}

template <class T, class Source>
constexpr Kernels<T, Source> kFamily<Kernels<T, Source>> = {Shape<T>::kPanel, pack<T, Source>, add_to_tile<T>,
                                                            write_tile<T>};
