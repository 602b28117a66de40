// result [N, 1 + k]: the diagonal of K, and K W for W [N, k]; K as in gram.h, of which nothing is written.
//
// Work     that of gram.h, and N^2 k multiply-adds for W.
// Traffic  as in gram.h, but a tile is multiplied with W, and its mirror image too, where it was formed. Sums of each row of
//          tiles are kept apart, N^2 k / 24 bytes.
// Numerics a tile as in gram.h; its products with W in K's type, over at most kTileSamples samples; sums over tiles in
//          float64 and in their order, so that results do not depend on the number of threads.
#pragma once

#include "gram.h"

namespace sgdkern {

template <class T>
struct GramMatvecKernels {
  // of_rows, of_columns [num_columns] rows of `stride`: products of the tile, and of its mirror image where it has one.
  void (*multiply_tile)(Sums<T>& sums, const Tile& tile, const T* weights, int64_t num_columns, int64_t stride,
                        double* of_rows, double* of_columns, double* diagonal);
};

#define SGDKERN_KERNELS "gram_matvec_tile.inl"
#include "instruction_sets.inl"

// weights [N, num_columns]; the rest as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool gram_matvec(const std::vector<Layer<Source>>& layers, int64_t num_samples, const T* weights, int64_t num_columns,
                 InstructionSet set, Parallel&& parallel, int64_t num_threads, T* result) {
  const Kernels<T, Source>& kernels = kernels_for<Kernels<T, Source>>(set);
  const Plan plan = plan_of<T>(layers, num_samples, kernels.panel, num_samples, num_threads);
  const int64_t padded = plan.side * plan.tile;
  Layout layout;
  const int64_t places[] = {layout.place(num_columns, padded, sizeof(T)),
                            layout.place(plan.side * num_columns, padded, sizeof(double)),
                            layout.place(1, padded, sizeof(double))};
  // New memory: what is kept is for the tiles, which need more.
  std::unique_ptr<Workspace> own = layout.bytes() < 0 ? nullptr : Workspace::fresh(layout.bytes());
  if (!own) return false;
  T* const across = reinterpret_cast<T*>(own->memory() + places[0]);  // [num_columns, padded], zeros past the last sample
  double* const parts = reinterpret_cast<double*>(own->memory() + places[1]);  // [side, num_columns, padded]
  double* const diagonal = reinterpret_cast<double*>(own->memory() + places[2]);
  for (int64_t c = 0; c < num_columns; ++c) {
    for (int64_t n = 0; n < padded; ++n) across[c * padded + n] = n < num_samples ? weights[n * num_columns + c] : T{0};
  }
  const auto multiply = [&](const Tile& tile, Sums<T>& sums) {
    kernels_for<GramMatvecKernels<T>>(set).multiply_tile(
        sums, tile, across, num_columns, padded, parts + tile.column / plan.tile * num_columns * padded + tile.row,
        parts + tile.row / plan.tile * num_columns * padded + tile.column, diagonal);
  };
  if (!sum_tiles(layers, plan, kernels, parallel, num_threads, multiply)) return false;
  for (int64_t n = 0; n < num_samples; ++n) {
    result[n * (1 + num_columns)] = static_cast<T>(diagonal[n]);
    for (int64_t c = 0; c < num_columns; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < plan.side; ++j) sum += parts[(j * num_columns + c) * padded + n];
      result[n * (1 + num_columns) + 1 + c] = static_cast<T>(sum);
    }
  }
  return true;
}

}  // namespace sgdkern
