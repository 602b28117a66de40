// The arithmetic of packed_patches.h for one instruction set; see instruction_sets.inl. A vector holds one number of several
// samples, so that a sum over positions is plain multiply-adds of vectors, whatever the layer's geometry.

constexpr int kOutputs = SGDKERN_ROWS;
constexpr int kTaps = SGDKERN_ROWS > 4 ? 3 : SGDKERN_VECTORS;  // outputs x taps sums, the taps' operands and one more fit

// packed [places, kLanes]: rows [kLanes, features] transposed and widened, each number in its place.
template <class T, class Source>
SGDKERN_TARGET void pack_strip(const Source* rows, int64_t stride, int64_t samples, int64_t features, const int64_t* places,
                               T* packed) {
  constexpr int n = Shape<T>::kLanes;
  for (int64_t k0 = 0; k0 < features; k0 += n) {
    const int64_t width = std::min<int64_t>(n, features - k0);
    typename Shape<T>::Vector square[n];
    for (int64_t k = k0 + 2 * n; k < std::min<int64_t>(k0 + 3 * n, features); ++k) {
      __builtin_prefetch(packed + places[k] * n, 1);
    }
    load_square<T>(rows + k0, stride, samples, width, square);
    for (int64_t k = 0; k < width; ++k) std::memcpy(packed + places[k0 + k] * n, &square[k], sizeof(square[k]));
  }
}

// gradients [Outputs, Taps] vectors (+)= sum over some positions of output gradient times input, of a strip of samples.
template <class T, int Outputs, int Taps>
SGDKERN_INLINE void gradient_block(const T* inputs, const T* output_grads, const int64_t* taps, const int64_t* positions,
                                   int64_t num_positions, int64_t outputs, bool begins, T* gradients, int64_t row_length) {
  using S = Shape<T>;
  using Vector = typename S::Vector;
  Vector sums[Outputs][Taps];
  const auto place = [&](int o, int k) SGDKERN_TARGET __attribute__((always_inline)) {
    return reinterpret_cast<Vector*>(gradients + (o * row_length + k) * S::kPanel);
  };
  for (int o = 0; o < Outputs; ++o) {
    for (int k = 0; k < Taps; ++k) sums[o][k] = begins ? Vector{} : *place(o, k);
  }
  for (int64_t t = 0; t < num_positions; ++t, output_grads += outputs * S::kLanes) {
    const T* a = inputs + positions[t] * S::kLanes;
    Vector operand[Taps];
    for (int k = 0; k < Taps; ++k) operand[k] = *reinterpret_cast<const Vector*>(a + taps[k] * S::kLanes);
    for (int o = 0; o < Outputs; ++o) {
      Vector grad = reinterpret_cast<const Vector*>(output_grads)[o];
      SGDKERN_LOADED(grad);
      for (int k = 0; k < Taps; ++k) sums[o][k] += grad * operand[k];
    }
  }
  for (int o = 0; o < Outputs; ++o) {
    for (int k = 0; k < Taps; ++k) *place(o, k) = sums[o][k];
  }
}

// gradients [outputs, num_taps, kPanel] of one panel of samples, strip by strip.
template <class T>
SGDKERN_TARGET void form_gradients(const PatchPanel<T>& panel, const int64_t* taps, int64_t num_taps, int64_t first_output,
                                   int64_t outputs, T* gradients) {
  using S = Shape<T>;
  for (int strip = 0; strip < S::kVectors; ++strip) {
    const T* const inputs = panel.inputs + strip * panel.input_size * S::kLanes;
    const T* const output_grads = panel.output_grads + strip * panel.num_outputs * panel.num_positions * S::kLanes;
    int64_t first = 0;
    do {  // once even without positions: the gradients are zeros then
      const int64_t positions = std::min(kBlockPositions, panel.num_positions - first);
      for (int64_t tap = 0; tap < num_taps; tap += kBlockTaps) {
        const int64_t end = std::min(tap + kBlockTaps, num_taps);
        for (int64_t o = 0; o < outputs; o += kOutputs) {
          const int64_t group = std::min<int64_t>(kOutputs, panel.num_outputs - first_output - o);
          const T* const grads = output_grads + (first * panel.num_outputs + (first_output + o) * positions) * S::kLanes;
          const auto form = [&]<int Outputs, int Taps>(int64_t at, int64_t k) SGDKERN_TARGET __attribute__((always_inline)) {
            gradient_block<T, Outputs, Taps>(inputs, grads + at * S::kLanes, taps + k, panel.positions + first, positions,
                                             group, first == 0,
                                             gradients + ((o + at) * num_taps + k) * S::kPanel + strip * S::kLanes, num_taps);
          };
          const auto rows = [&]<int Outputs>(int64_t at) SGDKERN_TARGET __attribute__((always_inline)) {
            int64_t k = tap;
            for (; k + kTaps <= end; k += kTaps) form.template operator()<Outputs, kTaps>(at, k);
            for (; k < end; ++k) form.template operator()<Outputs, 1>(at, k);
          };
          int64_t at = 0;
          if (group == kOutputs) {
            rows.template operator()<kOutputs>(0);
            at = group;
          }
          if constexpr (kOutputs > 4) {
            for (; at + 4 <= group; at += 4) rows.template operator()<4>(at);
          }
          for (; at + 2 <= group; at += 2) rows.template operator()<2>(at);
          for (; at < group; ++at) rows.template operator()<1>(at);
        }
      }
      first += kBlockPositions;
    } while (first < panel.num_positions);
  }
}

template <class T, class Source>
constexpr GradientKernels<T, Source> kFamily<GradientKernels<T, Source>> = {Shape<T>::kLanes, kOutputs,
                                                                            pack_strip<T, Source>, form_gradients<T>};
