// The arithmetic of register_block.h for one instruction set; see instruction_sets.inl.

constexpr int kSteps = SGDKERN_ROWS > 4 ? 6 : 4;          // broadcast numbers at a time, and
constexpr int kWideVectors = SGDKERN_ROWS > 4 ? 4 : 2;    // vectors beside them: 24 sums in 32 registers, or 8 in 16

// Calls body<count>(); 1 <= count <= Most.
template <int Most, class Body>
SGDKERN_INLINE void with_count(int64_t count, const Body& body) {
  if constexpr (Most > 1) {
    if (count < Most) return with_count<Most - 1>(count, body);
  }
  body.template operator()<Most>();
}

// Numbers one behind the other, widened where they must be: a loop over those of type T keeps sums out of registers.
template <class T, class Source>
SGDKERN_INLINE typename Shape<T>::Vector load(const Source* from) {
  typename Shape<T>::Vector vector;
  if constexpr (std::is_same_v<T, Source>) {
    std::memcpy(&vector, from, sizeof(vector));
  } else {
    T numbers[Shape<T>::kLanes];
    for (int k = 0; k < Shape<T>::kLanes; ++k) numbers[k] = widen<T>(from[k]);
    std::memcpy(&vector, numbers, sizeof(vector));
  }
  return vector;
}

// to [width]: the `count` features of a row that are left, up to `width`, widened; then a constant one, and zeros.
template <class T, class Source>
SGDKERN_INLINE void copy_features(const Source* from, int64_t count, int64_t width, bool constant_column, T* to) {
  if (count >= width) {
    for (int64_t k = 0; k < width; ++k) to[k] = widen<T>(from[k]);
    return;
  }
  std::fill(to, to + width, T{0});
  for (int64_t k = 0; k < count; ++k) to[k] = widen<T>(from[k]);
  if (constant_column) to[count] = T{1};
}

// Rows at equal distances.
template <class T>
struct Strided {
  const T* first;
  int64_t stride;
  SGDKERN_INLINE const T* operator[](int64_t k) const { return first + k * stride; }
};

// sums [Steps, Vectors] += over k < count: numbers[k][i * across] times the vectors in rows[k].
template <class T, int Steps, int Vectors, class Numbers, class Rows>
SGDKERN_INLINE void add_block(const Numbers& numbers, int64_t across, const Rows& rows, int64_t count,
                              typename Shape<T>::Vector (&sums)[Steps][Vectors]) {
  using Vector = typename Shape<T>::Vector;
  for (int64_t k = 0; k < count; ++k) {
    Vector operand[Vectors];
    for (int v = 0; v < Vectors; ++v) operand[v] = load<T>(rows[k] + v * Shape<T>::kLanes);
    for (int i = 0; i < Steps; ++i) {
      const T number = widen<T>(numbers[k][i * across]);
      for (int v = 0; v < Vectors; ++v) sums[i][v] += number * operand[v];
    }
  }
}

// Lanes of a vector, first half plus second, in float64, until one is left.
template <class Vector, std::size_t... I>
SGDKERN_INLINE double sum_of_halves(const Vector& vector, std::index_sequence<I...>) {
  constexpr int half = sizeof...(I);
  if constexpr (half == 1) {
    return double(vector[0]) + double(vector[1]);
  } else {
    typedef double Half __attribute__((vector_size(half * sizeof(double))));
    const Half sums = __builtin_convertvector(__builtin_shufflevector(vector, vector, I...), Half) +
                      __builtin_convertvector(__builtin_shufflevector(vector, vector, (half + I)...), Half);
    return sum_of_halves(sums, std::make_index_sequence<half / 2>{});
  }
}

template <class T>
SGDKERN_INLINE double sum_of_lanes(const typename Shape<T>::Vector& vector) {
  return sum_of_halves(vector, std::make_index_sequence<Shape<T>::kLanes / 2>{});
}

constexpr int kSide = SGDKERN_ROWS > 4 ? 5 : 3;  // 25 sums and 6 operands in 32 registers, or 9 and 4 in 16
constexpr int kPairs = kSide * kSide;

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
    operand[j] = load<T>(right[j] + at);
    if (Masked) operand[j] = masked<T>(operand[j], mask);
  }
#pragma GCC unroll 5
  for (int i = 0; i < kSide; ++i) {
    typename Shape<T>::Vector row = load<T>(left[i] + at);
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
