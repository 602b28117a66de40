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
