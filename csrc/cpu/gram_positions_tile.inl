// The arithmetic of gram_positions.h for one instruction set; see instruction_sets.inl.

// A tile of a pair of groups: rows [row0, row0 + rows) of the one, [column0, column0 + columns) of the other.
struct PositionTile {
  int64_t row0, rows, column0, columns, positions;
  bool same_group;

  bool diagonal() const { return same_group && row0 == column0; }
};

// sums [columns] over rows [begin, end).
template <class T>
SGDKERN_INLINE void sum_rows(const T* products, int64_t begin, int64_t end, int64_t columns, T* sums) {
  std::fill_n(sums, columns, T{0});
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < columns; ++j) sums[j] += products[i * kTileSamples + j];
  }
}

template <class T>
SGDKERN_INLINE double sum_of(const T* numbers, int64_t begin, int64_t end) {
  double sum = 0;
  for (int64_t j = begin; j < end; ++j) sum += double(numbers[j]);
  return sum;
}

// Of a sample's own rows in a tile on the diagonal only the pairs below the diagonal are there: they count twice.
template <class T>
SGDKERN_INLINE double sum_own_block(const T* products, int64_t begin, int64_t end, T* sums) {
  double on = 0;
  std::fill(sums + begin, sums + end, T{0});
  for (int64_t i = begin; i < end; ++i) {
    const T* row = products + i * kTileSamples;
    for (int64_t j = begin; j < i; ++j) sums[j] += row[j];
    on += double(row[i]);
  }
  return 2 * sum_of(sums, begin, end) + on;
}

// block [samples, samples of the other group], rows N apart, += the sums of the tile's T x T blocks; of one group the lower half.
template <class T>
SGDKERN_INLINE void add_blocks(const T* products, const PositionTile& tile, T* block, int64_t num_samples) {
  const int64_t positions = tile.positions, end_row = tile.row0 + tile.rows;
  alignas(64) T sums[kTileSamples];
  for (int64_t n = tile.row0 / positions; n * positions < end_row; ++n) {
    const int64_t begin = std::max(n * positions, tile.row0) - tile.row0;
    const int64_t end = std::min((n + 1) * positions, end_row) - tile.row0;
    const int64_t columns = tile.diagonal() ? begin : tile.columns;  // of earlier samples, or of all
    T* row = block + n * num_samples;
    sum_rows(products, begin, end, columns, sums);
    for (int64_t m = tile.column0 / positions; m * positions < tile.column0 + columns; ++m) {
      const int64_t first = std::max(m * positions, tile.column0) - tile.column0;
      const double sum = sum_of(sums, first, std::min((m + 1) * positions - tile.column0, columns));
      row[m] += T(tile.same_group && n == m ? 2 * sum : sum);  // the mirror image of a sample's own is another tile's
    }
    if (tile.diagonal()) row[n] += T(sum_own_block(products, begin, end, sums));
  }
}

// The block of K that a pair of groups has, and its mirror image.
template <class T>
SGDKERN_TARGET void gram_of_groups(const PackedLayer<T>& layer, const Groups& groups, int64_t row_group,
                                   int64_t column_group, Sums<T>& sums, T* gram) {
  using S = Shape<T>;
  const bool same = row_group == column_group;
  const int64_t in = layer.in_features, out = layer.out_features, num_samples = groups.num_samples;
  const int64_t samples = groups.samples_of(row_group), others = groups.samples_of(column_group);
  const int64_t rows = samples * groups.num_positions, columns = others * groups.num_positions;
  const int64_t n0 = row_group * groups.samples, m0 = column_group * groups.samples;
  T* const block = gram + n0 * num_samples + m0;
  for (int64_t n = 0; n < samples; ++n) std::fill_n(block + n * num_samples, same ? n + 1 : others, T{0});
  const T constant = layer.constant_column ? T{1} : T{0};
  const Sink<T> sink{sums.first, sums.second, sums.total, constant, false, true, true, true};
  for (int64_t row0 = 0; row0 < rows; row0 += groups.tile) {
    for (int64_t column0 = 0; column0 < (same ? row0 + 1 : columns); column0 += groups.tile) {
      const PositionTile tile{row0, std::min(groups.tile, rows - row0), column0, std::min(groups.tile, columns - column0),
                              groups.num_positions, same};
      const int64_t row_panels = (tile.rows + S::kPanel - 1) / S::kPanel;
      const int64_t column_panels = (tile.columns + S::kPanel - 1) / S::kPanel;
      const int64_t left = row_group * groups.rows + row0, right = column_group * groups.rows + column0;
      product<T>(layer.inputs + left * in, layer.inputs + right * in, in, row_panels, column_panels, tile.diagonal(), sink,
                 true);
      product<T>(layer.output_grads + left * out, layer.output_grads + right * out, out, row_panels, column_panels,
                 tile.diagonal(), sink, false);
      add_blocks(sums.total, tile, block, num_samples);
    }
  }
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t m = 0; m < (same ? n : others); ++m) gram[(m0 + m) * num_samples + n0 + n] = block[n * num_samples + m];
  }
}

template <class T>
constexpr PositionKernels<T> kFamily<PositionKernels<T>> = {gram_of_groups<T>};
