// result [N, 1 + k]: the diagonal of K, and K W for W [N, k]; K as in gram.h, of which no more than a tile is ever there.
//
// Work     that of gram.h, and N^2 k multiply-adds for W.
// Traffic  as in gram.h, but nothing of K is written: a tile is multiplied with W, and its mirror image too, where it was
//          formed. Sums of each row of tiles are kept apart, N^2 k / 24 bytes.
// Numerics a tile as in gram.h; its products with W in K's type, over at most kTileSamples samples; sums over tiles in
//          float64 and in their order, so that results do not depend on the number of threads.
#pragma once

#include "gram.h"

namespace sgdkern {

template <class T>
struct GramMatvecKernels {
  // of_rows, of_columns [num_columns] rows of `stride`: products of the tile, and of its mirror image where it has one.
  void (*multiply_tile)(const PackedLayer<T>* layers, int64_t num_layers, int64_t num_samples, int64_t tile, int64_t row0,
                        int64_t column0, Sums<T>& sums, const T* weights, int64_t num_columns, int64_t stride,
                        double* of_rows, double* of_columns, double* diagonal);
};

#define SGDKERN_KERNELS "gram_matvec_tile.inl"
#include "instruction_sets.inl"

// weights [N, num_columns]; the rest as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool gram_matvec(const std::vector<Layer<Source>>& layers, int64_t num_samples, const T* weights, int64_t num_columns,
                 InstructionSet set, Parallel&& parallel, T* result) {
  const Kernels<T, Source>& kernels = kernels_for<Kernels<T, Source>>(set);
  const int64_t tile = num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples;
  const int64_t side = (num_samples + tile - 1) / tile, padded = side * tile;
  std::vector<PackedLayer<T>> packed;
  // First, so that it gets the memory that is kept.
  std::unique_ptr<Workspace> workspace = room_for<T>(layers, num_samples, kernels.panel, packed);
  if (!workspace) return false;
  pack_samples<T>(layers, 0, num_samples, kernels, parallel, 0, packed);
  Layout layout;
  const int64_t places[] = {layout.place(num_columns, padded, sizeof(T)),
                            layout.place(side * num_columns, padded, sizeof(double)),
                            layout.place(1, padded, sizeof(double))};
  std::unique_ptr<Workspace> own = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!own) return false;
  T* const across = reinterpret_cast<T*>(own->memory() + places[0]);  // [num_columns, padded], zeros past the last sample
  double* const parts = reinterpret_cast<double*>(own->memory() + places[1]);  // [side, num_columns, padded]
  double* const diagonal = reinterpret_cast<double*>(own->memory() + places[2]);
  for (int64_t c = 0; c < num_columns; ++c) {
    for (int64_t n = 0; n < padded; ++n) across[c * padded + n] = n < num_samples ? weights[n * num_columns + c] : T{0};
  }
  std::vector<std::array<int64_t, 2>> tiles;
  for (int64_t i = side; i-- > 0;) {
    for (int64_t j = 0; j <= i; ++j) tiles.push_back({i, j});
  }
  std::atomic<std::size_t> next{0};
  parallel(static_cast<int64_t>(tiles.size()), [&](int64_t, int64_t) {  // each thread takes the next tile, not a share
    const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
    for (std::size_t at; sums && (at = next++) < tiles.size();) {
      const auto [i, j] = tiles[at];
      kernels_for<GramMatvecKernels<T>>(set).multiply_tile(
          packed.data(), static_cast<int64_t>(packed.size()), num_samples, tile, i * tile, j * tile, *sums, across,
          num_columns, padded, parts + j * num_columns * padded + i * tile, parts + i * num_columns * padded + j * tile,
          diagonal);
    }
  });
  Workspace::keep(std::move(workspace));
  if (next < tiles.size()) return false;  // no thread had memory for its sums
  for (int64_t n = 0; n < num_samples; ++n) {
    result[n * (1 + num_columns)] = static_cast<T>(diagonal[n]);
    for (int64_t c = 0; c < num_columns; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < side; ++j) sum += parts[(j * num_columns + c) * padded + n];
      result[n * (1 + num_columns) + 1 + c] = static_cast<T>(sum);
    }
  }
  return true;
}

}  // namespace sgdkern
