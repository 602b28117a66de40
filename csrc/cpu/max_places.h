// places [N, C, H', W']: where in its plane [H, W] the largest number of each window is, the first where several are; a NaN is
// larger than all numbers, and of several the last counts. What max pooling needs: its values are these numbers.
//
// Work     a comparison for each number of each window.
// Traffic  the inputs are read where they lie, and places written, once. Windows of common sizes that lie inside their plane
//          are unrolled and without branches, so that neighbouring outputs become vectors; any other is clipped, output by
//          output. There is one instruction set: wider vectors gain what measurements of whole networks do not show.
// Numerics numbers are compared, never changed: the result is torch's to the bit.
#pragma once

#include "gram.h"

#include <limits>

namespace sgdkern {

// Rows and columns of a window, of a plane and of its outputs.
struct Pool {
  std::array<int64_t, 2> kernel, stride, padding, inputs, outputs;
};

// A place inside a plane, as wide as its numbers, so that vectors of both are of like length.
template <class T>
using PlaneIndex = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Numbers of a window in order.
template <class T>
struct Largest {
  T value = -std::numeric_limits<T>::infinity();
  PlaneIndex<T> place;
  void meet(T other, PlaneIndex<T> at) {
    const bool takes = (other > value) | (other != other);
    value = takes ? other : value;
    place = takes ? at : place;
  }
};

// A row of outputs whose windows, Kernel x Kernel, lie inside the plane; the first begins at `plane[at]`.
template <class T, int Kernel, int Stride, class Source>
void places_inside(const Source* plane, int64_t width, int64_t at, int64_t outputs, int64_t* places) {
  for (int64_t x = 0; x < outputs; ++x) {
    Largest<T> largest{.place = PlaneIndex<T>(x * Stride)};
    for (int i = 0; i < Kernel; ++i) {
      for (int j = 0; j < Kernel; ++j) {
        const int64_t place = x * Stride + i * width + j;
        largest.meet(widen<T>(plane[at + place]), place);
      }
    }
    places[x] = at + largest.place;
  }
}

// The function that finds such rows, where there is one.
template <class T, class Source>
auto row_finder(const Pool& pool) -> decltype(&places_inside<T, 2, 2, Source>) {
  const auto is = [&](int64_t kernel, int64_t stride) {
    return pool.kernel == std::array{kernel, kernel} && pool.stride[1] == stride;
  };
  if (is(2, 2)) return places_inside<T, 2, 2, Source>;
  if (is(3, 2)) return places_inside<T, 3, 2, Source>;
  if (is(3, 1)) return places_inside<T, 3, 1, Source>;
  return nullptr;
}

// What a window has of its plane along one axis.
struct Span {
  int64_t first, last;
};

inline Span span(const Pool& pool, int axis, int64_t output) {
  const int64_t first = output * pool.stride[axis] - pool.padding[axis];
  return {std::max<int64_t>(first, 0), std::min(first + pool.kernel[axis], pool.inputs[axis])};
}

template <class T, class Source>
int64_t place_in(const Source* plane, int64_t width, Span rows, Span columns) {
  Largest<T> largest{.place = PlaneIndex<T>(rows.first * width + columns.first)};
  for (int64_t i = rows.first; i < rows.last; ++i) {
    for (int64_t j = columns.first; j < columns.last; ++j) largest.meet(widen<T>(plane[i * width + j]), i * width + j);
  }
  return largest.place;
}

// Outputs of an axis whose windows lie inside.
inline Span inside(const Pool& pool, int axis) {
  const int64_t stride = pool.stride[axis], room = pool.inputs[axis] + pool.padding[axis] - pool.kernel[axis];
  const int64_t first = std::min((pool.padding[axis] + stride - 1) / stride, pool.outputs[axis]);
  return {first, room < 0 ? first : std::clamp(room / stride + 1, first, pool.outputs[axis])};
}

// inputs [num_planes, *pool.inputs] -> places [num_planes, *pool.outputs]; every window has numbers of its plane;
// `parallel` as in gram.h.
template <class T, class Source, class Parallel>
void max_places(const Source* inputs, int64_t num_planes, const Pool& pool, Parallel&& parallel, int64_t* places) {
  const auto find_row = row_finder<T, Source>(pool);
  const int64_t width = pool.inputs[1], size = pool.inputs[0] * width, columns = pool.outputs[1];
  const Span rows_inside = inside(pool, 0), columns_inside = inside(pool, 1);
  parallel(num_planes * pool.outputs[0], [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t y = r % pool.outputs[0];
      const Source* const plane = inputs + r / pool.outputs[0] * size;
      int64_t* const row = places + r * columns;
      const auto clipped = [&](int64_t from, int64_t to) {
        for (int64_t x = from; x < to; ++x) row[x] = place_in<T>(plane, width, span(pool, 0, y), span(pool, 1, x));
      };
      if (find_row && rows_inside.first <= y && y < rows_inside.last) {
        const auto [first, last] = columns_inside;
        clipped(0, first);
        find_row(plane, width, span(pool, 0, y).first * width + first * pool.stride[1] - pool.padding[1], last - first,
                 row + first);
        clipped(last, columns);
      } else {
        clipped(0, columns);
      }
    }
  });
}

}  // namespace sgdkern
