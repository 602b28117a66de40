// The arithmetic of minibatch_norms.h for one instruction set; see instruction_sets.inl.

constexpr int kMembers = 8 * kSide;  // of a minibatch at a time: two chunks of so many rows fit a first-level cache

// A factor of a layer; the constant column lies behind its features.
template <class Source>
struct Factor {
  const Source* first;
  int64_t stride, features;
  bool constant_column;
  int64_t width() const { return features + constant_column; }
};

template <class T>
constexpr int64_t kChunk = kWideVectors * Shape<T>::kLanes;  // features at a time

// Rows wherever they are, from some place on.
template <class T>
struct Gathered {
  const T* const* rows;
  int64_t at;
  SGDKERN_INLINE const T* operator[](int64_t k) const { return rows[k] + at; }
};

// Pointers to features `first` ... of members' rows: where they lie, or to copies.
template <class T, class Source>
SGDKERN_INLINE void point(const Factor<Source>& factor, const int64_t* members, int64_t count, int64_t first, int64_t width,
                          T* copy, const T** rows) {
  const int64_t left = factor.features - first;
  if constexpr (std::is_same_v<T, Source>) {
    if (left >= width) {
      for (int64_t i = 0; i < count; ++i) rows[i] = factor.first + members[i] * factor.stride + first;
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i, copy += width) {
    copy_features(factor.first + members[i] * factor.stride + first, left, width, factor.constant_column, copy);
    rows[i] = copy;
  }
}

// Up to kSteps, so that `count` falls into parts of about one size: 25 into five of 5, where 1 is left of four of 6.
SGDKERN_INLINE int64_t even_steps(int64_t count) {
  const int64_t parts = (count + kSteps - 1) / kSteps;
  return (count + parts - 1) / parts;
}

// Asks for features of members' rows, which the next minibatch reads from wherever they are.
template <class Source>
SGDKERN_INLINE void prefetch(const Factor<Source>& factor, const int64_t* members, int64_t count, int64_t first,
                             int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    const Source* row = factor.first + members[i] * factor.stride + first;
    for (int64_t k = 0; k < width; k += 64 / sizeof(Source)) __builtin_prefetch(row + k, 0, 2);
  }
}

// Some members of a minibatch, up to kMembers, and those of the next one in their places.
struct Members {
  const int64_t *own, *next;
  int64_t count;
};

// Pointers to kSide rows of a factor; past the last member they repeat it.
template <class Source>
SGDKERN_INLINE void point_at_side(const Factor<Source>& factor, const int64_t* members, int64_t count,
                                  const Source* (&rows)[kSide]) {
  for (int64_t i = 0; i < kSide; ++i) rows[i] = factor.first + members[std::min(i, count - 1)] * factor.stride;
}

// products [kMembers, kMembers] = inner products of rows. Where left and right are the same: of i and j <= i, and half of
// that of i with itself, as other pairs are two.
template <class T, class Source>
SGDKERN_INLINE void inner_products(const Factor<Source>& factor, const Members& left, const Members& right, T* products) {
  constexpr int n = Shape<T>::kLanes, padded = (kPairs + n - 1) / n * n;
  const bool diagonal = left.own == right.own;
  for (int64_t row = 0; row < left.count; row += kSide) {
    const int64_t rows = std::min<int64_t>(kSide, left.count - row);
    const Source *left_rows[kSide], *right_rows[kSide];
    point_at_side(factor, left.own + row, rows, left_rows);
    if (diagonal && left.next) prefetch(factor, left.next + row, rows, 0, factor.features);
    for (int64_t column = 0; column < (diagonal ? row + 1 : right.count); column += kSide) {
      alignas(64) T block[padded];
      point_at_side(factor, right.own + column, std::min<int64_t>(kSide, right.count - column), right_rows);
      inner_products<T>(left_rows, right_rows, factor.features, block);
      if (factor.constant_column) {
        for (T& product : block) product += 1;
      }
      for (int i = 0; i < kSide; ++i) {
        if (diagonal && row == column) block[i * kSide + i] /= 2;
        std::memcpy(products + (row + i) * kMembers + column, block + i * kSide, kSide * sizeof(T));
      }
    }
  }
}

// sums [Steps, Vectors] += over j <= i: numbers [i, j] times the vectors in rows[j].
template <class T, int Steps, int Vectors>
SGDKERN_INLINE void add_triangle(const T* numbers, const T* const* rows, typename Shape<T>::Vector (&sums)[Steps][Vectors]) {
#pragma GCC unroll 6
  for (int j = 0; j < Steps; ++j) {
    typename Shape<T>::Vector operand[Vectors];
    for (int v = 0; v < Vectors; ++v) operand[v] = load<T>(rows[j] + v * Shape<T>::kLanes);
#pragma GCC unroll 6
    for (int i = j; i < Steps; ++i) {
      for (int v = 0; v < Vectors; ++v) sums[i][v] += numbers[i * kMembers + j] * operand[v];
    }
  }
}

// Sum over pairs of weights [kMembers, kMembers] times inner products of rows: of y_i = sum_j weights_ij a_j with a_i.
template <class T, class Source>
SGDKERN_INLINE double weighted_products(const Factor<Source>& factor, const Members& left, const Members& right,
                                        const T* weights) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = Shape<T>::kLanes;
  const bool diagonal = left.own == right.own;
  alignas(64) T copy[kMembers * kChunk<T>], other_copy[kMembers * kChunk<T>];
  const T *rows[kMembers], *others[kMembers];
  const int64_t vectors = (factor.width() + n - 1) / n;
  const int64_t step = even_steps(left.count);
  double total = 0;
  for (int64_t at = 0; at < vectors; at += kWideVectors) {
    with_count<kWideVectors>(vectors - at, [&]<int Vectors>() SGDKERN_TARGET __attribute__((always_inline)) {
      point(factor, left.own, left.count, at * n, Vectors * n, copy, rows);
      if (!diagonal) point(factor, right.own, right.count, at * n, Vectors * n, other_copy, others);
      Vector sums[Vectors] = {};
      for (int64_t i = 0; i < left.count; i += step) {
        with_count<kSteps>(std::min(step, left.count - i), [&]<int Steps>() SGDKERN_TARGET __attribute__((always_inline)) {
          Vector block[Steps][Vectors] = {};
          const Strided<T> numbers{weights + i * kMembers, 1};
          if (diagonal) {
            if (left.next) prefetch(factor, left.next + i, Steps, at * n, Vectors * n);
            add_block<T, Steps, Vectors>(numbers, kMembers, Gathered<T>{rows, 0}, i, block);
            add_triangle<T, Steps, Vectors>(numbers[i], rows + i, block);
          } else {
            add_block<T, Steps, Vectors>(numbers, kMembers, Gathered<T>{others, 0}, right.count, block);
          }
          for (int s = 0; s < Steps; ++s) {
            for (int v = 0; v < Vectors; ++v) sums[v] += block[s][v] * load<T>(rows[i + s] + v * n);
          }
        });
      }
      for (int v = 1; v < Vectors; ++v) sums[0] += sums[v];
      total += sum_of_lanes<T>(sums[0]);
    });
  }
  return total;
}

// ||sum of outer products of rows||^2 from the sum itself, a block of it at a time, over kMembers rows after the other.
template <class T, class Source>
SGDKERN_INLINE double square_of_sum(const Factor<Source>& narrow, const Factor<Source>& wide, const int64_t* members,
                                    const int64_t* next, int64_t size) {
  using Vector = typename Shape<T>::Vector;
  constexpr int n = Shape<T>::kLanes;
  alignas(64) T narrow_copy[kMembers * kChunk<T>], wide_copy[kMembers * kChunk<T>], sums[kChunk<T> * kChunk<T>];
  const T *numbers[kMembers], *rows[kMembers];
  const int64_t vectors = (wide.width() + n - 1) / n;
  double total = 0;
  for (int64_t first = 0; first < narrow.width(); first += kChunk<T>) {
    const int64_t count = std::min(kChunk<T>, narrow.width() - first), step = even_steps(count);
    for (int64_t at = 0; at < vectors; at += kWideVectors) {
      with_count<kWideVectors>(vectors - at, [&]<int Vectors>() SGDKERN_TARGET __attribute__((always_inline)) {
        Vector squares[Vectors] = {};
        for (int64_t begin = 0; begin < size; begin += kMembers) {
          const int64_t some = std::min<int64_t>(kMembers, size - begin);
          point(narrow, members + begin, some, first, count, narrow_copy, numbers);
          point(wide, members + begin, some, at * n, Vectors * n, wide_copy, rows);
          if (next && first == 0) prefetch(wide, next + begin, some, at * n, Vectors * n);
          for (int64_t i = 0; i < count; i += step) {
            with_count<kSteps>(std::min(step, count - i), [&]<int Steps>() SGDKERN_TARGET __attribute__((always_inline)) {
              Vector block[Steps][Vectors] = {};
              add_block<T, Steps, Vectors>(Gathered<T>{numbers, i}, 1, Gathered<T>{rows, 0}, some, block);
              Vector* sum = reinterpret_cast<Vector*>(sums + i * Vectors * n);
              for (int s = 0; s < Steps; ++s) {
                for (int v = 0; v < Vectors; ++v, ++sum) {
                  const Vector value = begin == 0 ? block[s][v] : *sum + block[s][v];
                  if (begin + some < size) {
                    *sum = value;
                  } else {
                    squares[v] += value * value;
                  }
                }
              }
            });
          }
        }
        for (int v = 1; v < Vectors; ++v) squares[0] += squares[v];
        total += sum_of_lanes<T>(squares[0]);
      });
    }
  }
  return total;
}

// The sum over pairs of members of products of both factors.
template <class T, class Source>
SGDKERN_INLINE double sum_of_pairs(const Factor<Source>& narrow, const Factor<Source>& wide, const int64_t* members,
                                   const int64_t* next, int64_t size) {
  alignas(64) T products[kMembers * kMembers];
  double total = 0;
  for (int64_t row = 0; row < size; row += kMembers) {
    const Members left{members + row, next ? next + row : nullptr, std::min<int64_t>(kMembers, size - row)};
    for (int64_t column = 0; column <= row; column += kMembers) {
      const Members right{members + column, nullptr, std::min<int64_t>(kMembers, size - column)};
      inner_products(narrow, left, right, products);
      total += 2 * weighted_products(wide, left, right, products);
    }
  }
  return total;
}

template <class T, class Source>
SGDKERN_TARGET double squared_norm(const Layer<Source>* layers, int64_t num_layers, const int64_t* members,
                                   const int64_t* next, int64_t size) {
  double total = 0;
  for (const Layer<Source>* layer = layers; layer != layers + num_layers; ++layer) {
    Factor<Source> narrow{layer->output_grads, layer->output_grads_stride, layer->out_features, false};
    Factor<Source> wide{layer->inputs, layer->inputs_stride, layer->in_features, layer->constant_column};
    if (narrow.width() > wide.width()) std::swap(narrow, wide);
    total += 2 * narrow.width() <= size ? square_of_sum<T>(narrow, wide, members, next, size)
                                        : sum_of_pairs<T>(narrow, wide, members, next, size);
  }
  return total;
}

template <class T, class Source>
constexpr MinibatchKernels<T, Source> kFamily<MinibatchKernels<T, Source>> = {squared_norm<T, Source>};
