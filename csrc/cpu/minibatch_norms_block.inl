// The arithmetic of minibatch_norms.h for one instruction set; see instruction_sets.inl.

constexpr int kSide = SGDKERN_ROWS > 4 ? 5 : 3;  // 25 sums and 6 operands in 32 registers, or 9 and 4 in 16
constexpr int kPairs = kSide * kSide;

template <class T, class Source>
SGDKERN_INLINE typename Shape<T>::Vector load_row(const Source* row) {
  T values[Shape<T>::kLanes];
  for (int k = 0; k < Shape<T>::kLanes; ++k) values[k] = widen<T>(row[k]);
  typename Shape<T>::Vector vector;
  std::memcpy(&vector, values, sizeof(values));
  return vector;
}

// Sums of the lanes of kLanes vectors: lane i of the first is the sum of vector i.
template <class T>
SGDKERN_INLINE void sum_lanes(typename Shape<T>::Vector (&vectors)[Shape<T>::kLanes]) {
#pragma GCC unroll 4
  for (int half = Shape<T>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      typename Shape<T>::Vector low, high;
      interleave(vectors[i], vectors[i + half], low, high, std::make_index_sequence<Shape<T>::kLanes>{});
      vectors[i] = low + high;
    }
  }
}

// All ones from lane `first` on, as a vector's bits.
template <class T>
SGDKERN_INLINE typename Shape<T>::Vector lanes_from(int64_t first) {
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  Bits bits[Shape<T>::kLanes];
  for (int k = 0; k < Shape<T>::kLanes; ++k) bits[k] = k >= first ? -1 : 0;
  typename Shape<T>::Vector vector;
  std::memcpy(&vector, bits, sizeof(bits));
  return vector;
}

template <class T>
SGDKERN_INLINE typename Shape<T>::Vector masked(typename Shape<T>::Vector vector, typename Shape<T>::Vector mask) {
  typedef int64_t Bits __attribute__((vector_size(SGDKERN_VECTOR_BYTES)));
  return reinterpret_cast<typename Shape<T>::Vector>(reinterpret_cast<Bits>(vector) & reinterpret_cast<Bits>(mask));
}

// sums [kSide, kSide] += products of kLanes features of rows; unrolled, so that the sums stay in registers.
template <class T, bool Masked, class Source>
SGDKERN_INLINE void add_features(const Source* const* left, const Source* const* right, int64_t at,
                                 typename Shape<T>::Vector mask, typename Shape<T>::Vector (&sums)[kSide][kSide]) {
  typename Shape<T>::Vector operand[kSide];
#pragma GCC unroll 5
  for (int j = 0; j < kSide; ++j) {
    operand[j] = load_row<T>(right[j] + at);
    if (Masked) operand[j] = masked<T>(operand[j], mask);
  }
#pragma GCC unroll 5
  for (int i = 0; i < kSide; ++i) {
    typename Shape<T>::Vector row = load_row<T>(left[i] + at);
    if (Masked) row = masked<T>(row, mask);
#pragma GCC unroll 5
    for (int j = 0; j < kSide; ++j) sums[i][j] += row * operand[j];
  }
}

// products [kSide, kSide] = inner products of rows.
template <class T, class Source>
SGDKERN_INLINE void inner_products(const Source* const* left, const Source* const* right, int64_t features, T* products) {
  using S = Shape<T>;
  constexpr int n = S::kLanes;
  typename S::Vector sums[kSide][kSide] = {};
  int64_t k = 0;
  for (; k + n <= features; k += n) add_features<T, false>(left, right, k, typename S::Vector{}, sums);
  if (k < features && features >= n) {  // the last vector's other lanes have been there
    add_features<T, true>(left, right, features - n, lanes_from<T>(k - (features - n)), sums);
  } else if (k < features) {  // what there is, with zeros behind it
    Source rest[2 * kSide][n] = {};
    const Source* rows[2 * kSide];
    for (int i = 0; i < 2 * kSide; ++i) {
      rows[i] = rest[i];
      std::memcpy(rest[i], i < kSide ? left[i] : right[i - kSide], features * sizeof(Source));
    }
    add_features<T, false>(rows, rows + kSide, 0, typename S::Vector{}, sums);
  }
#pragma GCC unroll 8
  for (int first = 0; first < kPairs; first += n) {
    typename S::Vector vectors[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      vectors[i] = first + i < kPairs ? sums[(first + i) / kSide][(first + i) % kSide] : typename S::Vector{};
    }
    sum_lanes<T>(vectors);
    std::memcpy(products + first, &vectors[0], sizeof(vectors[0]));
  }
}

// Pointers to kSide rows of a factor; past the last member they repeat it.
template <class Source>
SGDKERN_INLINE void point(const Source* factor, int64_t stride, const int64_t* members, int64_t count,
                          const Source* (&rows)[kSide]) {
  for (int64_t i = 0; i < kSide; ++i) rows[i] = factor + members[std::min(i, count - 1)] * stride;
}

// Asks for some rows of a factor, which the next minibatch reads from wherever they are.
template <class Source>
SGDKERN_INLINE void prefetch_rows(const Source* factor, int64_t stride, int64_t features, const int64_t* members,
                                  int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Source* row = factor + members[i] * stride;
    for (int64_t k = 0; k < features; k += 64 / sizeof(Source)) __builtin_prefetch(row + k, 0, 2);
  }
}

template <class T, class Source>
SGDKERN_TARGET double squared_norm(const Layer<Source>* layers, int64_t num_layers, const int64_t* members,
                                   const int64_t* next, int64_t size) {
  constexpr int n = Shape<T>::kLanes, padded = (kPairs + n - 1) / n * n;
  double total = 0;
  for (const Layer<Source>* layer = layers; layer != layers + num_layers; ++layer) {
    const double constant = layer->constant_column ? 1 : 0;
    const int64_t sides = (size + kSide - 1) / kSide, num_blocks = sides * (sides + 1) / 2;
    int64_t block = 0;
    for (int64_t row = 0; row < size; row += kSide) {
      const int64_t rows = std::min<int64_t>(kSide, size - row);
      const Source *left_inputs[kSide], *left_grads[kSide];
      point(layer->inputs, layer->inputs_stride, members + row, rows, left_inputs);
      point(layer->output_grads, layer->output_grads_stride, members + row, rows, left_grads);
      for (int64_t column = 0; column <= row; column += kSide) {
        const int64_t columns = std::min<int64_t>(kSide, size - column);
        if (next) {  // a share of the next minibatch's rows with each block
          const int64_t begin = block * size / num_blocks, end = (block + 1) * size / num_blocks;
          prefetch_rows(layer->inputs, layer->inputs_stride, layer->in_features, next, begin, end);
          prefetch_rows(layer->output_grads, layer->output_grads_stride, layer->out_features, next, begin, end);
          ++block;
        }
        const Source *right_inputs[kSide], *right_grads[kSide];
        point(layer->inputs, layer->inputs_stride, members + column, columns, right_inputs);
        point(layer->output_grads, layer->output_grads_stride, members + column, columns, right_grads);
        alignas(64) T first[padded], second[padded];
        inner_products<T>(left_inputs, right_inputs, layer->in_features, first);
        inner_products<T>(left_grads, right_grads, layer->out_features, second);
        double sum = 0;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) {
            sum += (double(first[i * kSide + j]) + constant) * double(second[i * kSide + j]);
          }
        }
        total += column < row ? 2 * sum : sum;
      }
    }
  }
  return total;
}

template <class T, class Source>
constexpr MinibatchKernels<Source> kMinibatchKernels = {squared_norm<T, Source>};
