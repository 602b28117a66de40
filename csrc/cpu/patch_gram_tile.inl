// The arithmetic of patch_gram.h for one instruction set; see instruction_sets.inl. A vector holds one number of several
// samples, so that a sum over positions is plain multiply-adds of vectors, whatever the layer's geometry.

constexpr int kOutputs = 4;
constexpr int kTaps = SGDKERN_ROWS > 4 ? 3 : 1;  // outputs x taps x vectors of a panel: 24 sums where there is room, else 12

// gradients [Outputs, Taps, kPanel] (+)= sum over some positions of output gradient times input.
template <class T, int Outputs, int Taps>
SGDKERN_INLINE void gradient_block(const T* inputs, const T* output_grads, const int64_t* taps, int64_t output_stride,
                                   const Positions& positions, bool begins, T* gradients, int64_t row_length) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  Vector sums[Outputs][Taps][S::kVectors];
  for (int o = 0; o < Outputs; ++o) {
    for (int k = 0; k < Taps; ++k) {
      const Vector* before = reinterpret_cast<const Vector*>(gradients + (o * row_length + k) * S::kPanel);
      for (int v = 0; v < S::kVectors; ++v) sums[o][k][v] = begins ? Vector{} : before[v];
    }
  }
  for (int64_t t = 0; t < positions.count; ++t) {
    const T* a = inputs + positions.input[t] * S::kPanel;
    const T* b = output_grads + positions.output[t] * S::kPanel;
    Vector operand[Taps][S::kVectors];
    for (int k = 0; k < Taps; ++k) {
      for (int v = 0; v < S::kVectors; ++v) operand[k][v] = reinterpret_cast<const Vector*>(a + taps[k] * S::kPanel)[v];
    }
    for (int o = 0; o < Outputs; ++o) {
      for (int v = 0; v < S::kVectors; ++v) {
        Vector grad = reinterpret_cast<const Vector*>(b + o * output_stride * S::kPanel)[v];
        SGDKERN_LOADED(grad);
        for (int k = 0; k < Taps; ++k) sums[o][k][v] += grad * operand[k][v];
      }
    }
  }
  for (int o = 0; o < Outputs; ++o) {
    for (int k = 0; k < Taps; ++k) {
      Vector* after = reinterpret_cast<Vector*>(gradients + (o * row_length + k) * S::kPanel);
      for (int v = 0; v < S::kVectors; ++v) after[v] = sums[o][k][v];
    }
  }
}

// gradients [outputs, num_taps, kPanel] of one panel of samples.
template <class T>
SGDKERN_TARGET void form_gradients(const T* inputs, const T* output_grads, const int64_t* taps, int64_t num_taps,
                                   int64_t outputs, int64_t output_stride, const Positions& positions, T* gradients) {
  using S = Shape<T>;
  int64_t first = 0;
  do {  // once even without positions: the gradients are zeros then
    const Positions part{positions.input + first, positions.output + first,
                         std::min(kBlockPositions, positions.count - first)};
    for (int64_t tap = 0; tap < num_taps; tap += kBlockTaps) {
      const int64_t end = std::min(tap + kBlockTaps, num_taps);
      for (int64_t o = 0; o < outputs;) {
        const T* b = output_grads + o * output_stride * S::kPanel;
        T* row = gradients + o * num_taps * S::kPanel;
        const bool some = outputs - o >= kOutputs;
        const auto form = [&]<int Outputs, int Taps>(int64_t k) SGDKERN_TARGET __attribute__((always_inline)) {
          gradient_block<T, Outputs, Taps>(inputs, b, taps + k, output_stride, part, first == 0, row + k * S::kPanel,
                                           num_taps);
        };
        int64_t k = tap;
        for (; k + kTaps <= end; k += kTaps) {
          some ? form.template operator()<kOutputs, kTaps>(k) : form.template operator()<1, kTaps>(k);
        }
        for (; k < end; ++k) some ? form.template operator()<kOutputs, 1>(k) : form.template operator()<1, 1>(k);
        o += some ? kOutputs : 1;
      }
    }
    first += kBlockPositions;
  } while (first < positions.count);
}

// A tile of K on or below the diagonal += rows times columns of packed gradients [N / kPanel, features, kPanel].
template <class T>
SGDKERN_TARGET void add_products(const T* gradients, int64_t features, int64_t num_samples, int64_t tile, int64_t row0,
                                 int64_t column0, Sums<T>& sums, T* gram) {
  using S = Shape<T>;
  const bool diagonal = row0 == column0;
  const int64_t rows = std::min(tile, num_samples - row0), columns = std::min(tile, num_samples - column0);
  const Sink<T> sink{sums.first, sums.second, sums.total, T{0}, true, false, false, true};
  product<T>(gradients + row0 * features, gradients + column0 * features, features, (rows + S::kPanel - 1) / S::kPanel,
             (columns + S::kPanel - 1) / S::kPanel, diagonal, sink, true);
  for (int64_t i = 0; i < rows; ++i) {
    T* row = gram + (row0 + i) * num_samples + column0;
    const T* sum = sums.first + i * kTileSamples;
    for (int64_t j = 0; j < (diagonal ? i + 1 : columns); ++j) row[j] += sum[j];
  }
}

template <class T>
constexpr PatchKernels<T> kPatchKernels = {form_gradients<T>, add_products<T>};
