// K [N, N] = G G^T of a layer whose weight is used at several positions: g_n[o, tap] = sum over positions t of
// b_n[o, t] a_n[t, tap]. A convolution's taps are (channel, kernel row, kernel column), a sequence layer's its features.
//
// Work     N * T * O * taps multiply-adds for the gradients, N (N + 1) / 2 * O * taps for their products.
// Traffic  the factors are read, and packed, once. Gradients are formed kChunk features at a time, in the packed layout that
//          the products want, used, and overwritten: neither patches nor gradients are ever stored whole.
// Threads  few samples make few tiles. Then the chunks are dealt out to kParts parts, each with a K of its own, and these are
//          added at the end; else tiles are shared, chunk by chunk. The number of parts does not depend on the threads.
// Numerics fixed order: positions in order, features as in gram.h, then chunks, then parts.
#pragma once

#include "packed_patches.h"

namespace sgdkern {

constexpr int64_t kFewSamples = 256;  // up to here K is a quarter of a mebibyte in float32, and parts have one each
constexpr int64_t kParts = 8;

template <class T>
struct PatchKernels {
  void (*add_products)(const T* gradients, int64_t features, int64_t num_samples, int64_t tile, int64_t row0,
                       int64_t column0, Sums<T>& sums, T* gram);
};

#define SGDKERN_KERNELS "patch_gram_tile.inl"
#include "instruction_sets.inl"

// Adds the products of packed gradients [N / kPanel, features, kPanel] to tiles on and below K's diagonal.
template <class T>
class PatchProducts {
 public:
  PatchProducts(int64_t num_samples, InstructionSet set)
      : num_samples_(num_samples), tile_(num_samples < 2 * kTileSamples ? kTileSamples / 2 : kTileSamples),
        add_products_(kernels_for<PatchKernels<T>>(set).add_products) {
    for (int64_t i = 0; i < num_samples; i += tile_) {
      for (int64_t j = 0; j <= i; j += tile_) tiles_.push_back({i, j});
    }
  }

  int64_t num_tiles() const { return tiles_.size(); }

  // Tiles begin ... end - 1; false when there is no memory for sums.
  bool add(const T* gradients, int64_t features, int64_t begin, int64_t end, T* gram) const {
    const std::unique_ptr<Sums<T>> sums(new (std::nothrow) Sums<T>);
    for (int64_t at = begin; sums && at < end; ++at) {
      add_products_(gradients, features, num_samples_, tile_, tiles_[at][0], tiles_[at][1], *sums, gram);
    }
    return sums != nullptr;
  }

 private:
  const int64_t num_samples_, tile_;
  const decltype(PatchKernels<T>::add_products) add_products_;
  std::vector<std::array<int64_t, 2>> tiles_;  // first rows and columns
};

// A layer's packed factors, which make chunks of packed gradients [N / kPanel, features, kPanel].
template <class T, class Source>
struct PatchGradients {
  const PatchLayer<Source>& layer;
  const PackedPatches<T, Source>& packed;
  const PatchChunks& chunks;
  const T* inputs;
  const T* output_grads;
  int64_t num_panels, panel;

  void form(int64_t c, int64_t p, T* gradients) const {
    packed.form(chunks, c, inputs + p * panel * layer.input_size, output_grads + p * panel * layer.output_size,
                gradients + p * panel * chunks.features(c));
  }

  int64_t most_numbers() const { return num_panels * panel * chunks.most_features(); }
};

// gram += G G^T below the diagonal, each part formed and multiplied by one thread. There is room for a chunk a part in
// `gradients`, and for the K of all parts but the first in `others`.
template <class T, class Source, class Parallel>
bool add_by_parts(const PatchGradients<T, Source>& source, const PatchProducts<T>& products, int64_t parts,
                  Parallel&& parallel, T* gradients, T* others, int64_t size, T* gram) {
  std::atomic<bool> done{true};
  parallel(parts, [&](int64_t begin, int64_t end) {
    T* const own = gradients + begin * source.most_numbers();  // a thread's
    for (int64_t part = begin; part < end; ++part) {
      T* const sum = part ? std::fill_n(others + (part - 1) * size, size, T{0}) - size : gram;
      for (int64_t c = part; c < source.chunks.count(); c += parts) {
        for (int64_t p = 0; p < source.num_panels; ++p) source.form(c, p, own);
        if (!products.add(own, source.chunks.features(c), 0, products.num_tiles(), sum)) done = false;
      }
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    const T* other = others + (part - 1) * size;
    for (int64_t i = 0; i < size; ++i) gram[i] += other[i];
  }
  return done;
}

// The same chunk by chunk, each formed and multiplied by all threads.
template <class T, class Source, class Parallel>
bool add_by_tiles(const PatchGradients<T, Source>& source, const PatchProducts<T>& products, Parallel&& parallel,
                  T* gradients, T* gram) {
  std::atomic<bool> done{true};
  for (int64_t c = 0; c < source.chunks.count(); ++c) {
    parallel(source.num_panels, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) source.form(c, p, gradients);
    });
    parallel(products.num_tiles(), [&](int64_t begin, int64_t end) {
      if (!products.add(gradients, source.chunks.features(c), begin, end, gram)) done = false;
    });
  }
  return done;
}

// result [N, N]; as `gram` in gram.h.
template <class T, class Source, class Parallel>
bool patch_gram(const PatchLayer<Source>& layer, int64_t num_samples, InstructionSet set, Parallel&& parallel, T* result) {
  const int64_t num_taps = layer.taps.size(), size = num_samples * num_samples;
  const int64_t panel = kernels_for<Kernels<T, Source>>(set).panel, num_panels = (num_samples + panel - 1) / panel;
  const bool few = num_samples <= kFewSamples;
  const PatchChunks chunks{patch_chunk(layer.num_outputs, num_taps, few ? kParts : 1), layer.num_outputs, num_taps};
  const int64_t parts = few ? std::min(kParts, chunks.count()) : 1;
  const PackedPatches<T, Source> packed(layer, set);
  PatchGradients<T, Source> source{layer, packed, chunks, nullptr, nullptr, num_panels, panel};
  Layout layout;
  const int64_t places[] = {layout.place(num_panels * panel, layer.input_size, sizeof(T)),
                            layout.place(num_panels * panel, layer.output_size, sizeof(T)),
                            layout.place(parts, source.most_numbers(), sizeof(T)),
                            layout.place(std::max<int64_t>(parts - 1, 0), size, sizeof(T))};
  std::unique_ptr<Workspace> workspace = layout.bytes() < 0 ? nullptr : Workspace::make(layout.bytes());
  if (!workspace) return false;
  const auto array = [&](int which) { return reinterpret_cast<T*>(workspace->memory() + places[which]); };
  T *const inputs = array(0), *const output_grads = array(1);
  source.inputs = inputs, source.output_grads = output_grads;

  parallel(num_panels, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel;
      packed.pack(first, std::min(panel, num_samples - first), inputs + first * layer.input_size,
                  output_grads + first * layer.output_size);
    }
  });
  std::fill(result, result + size, T{0});
  const PatchProducts<T> products(num_samples, set);
  const bool done = few ? add_by_parts(source, products, parts, parallel, array(2), array(3), size, result)
                        : add_by_tiles(source, products, parallel, array(2), result);
  for (int64_t i = 0; i < num_samples; ++i) {
    for (int64_t j = 0; j < i; ++j) result[j * num_samples + i] = result[i * num_samples + j];
  }
  Workspace::keep(std::move(workspace));
  return done;
}

}  // namespace sgdkern
