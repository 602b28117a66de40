"""TiledGram: K = G Gᵀ in a file, for N too large for memory; u → K u reads it once for a whole block of vectors.

Only the tiles on and above the diagonal are kept, 2 N² bytes in float32: each serves K_ij u_j and K_ijᵀ u_i. A tile
costs n_i n_j (I + O) multiplications a layer, and is computed from the factors of two chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sgdkern.chunk_store import factor_bytes
from sgdkern.factors import Dense
from sgdkern.full_precision import full_precision
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.ops import thin_product
from sgdkern.scratch_file import ScratchFile
from sgdkern.streaming import StreamingGradients

# Rows of a tile: 1024² float32 are 4 MiB, a read long enough for any disk and short beside any memory bound.
TILE_ROWS = 1024
# What passes by beside the band that is held: a block of rows as a chunk, as its slice, and stacked.
_BLOCKS_IN_FLIGHT = 3
# A tile, and the two products it is made of.
_TILES_IN_FLIGHT = 3


class TiledGram:
    """K in a file that has no name and ends with the process.

    Args:
        source: Per-sample gradients; of a stream, as many tile rows are held at once as fit in the bound, a pass over
            the data for each such band.
        folder: Where the file goes: 2 N² bytes in float32, half of K.
        memory_bound: Bytes for what is held of a stream: a band of tile rows, the block that passes by, and a tile.
    """

    def __init__(self, source: GradientMatrix | StreamingGradients, folder: Path, memory_bound: int) -> None:
        self._file = ScratchFile(folder)
        self._dtype, self._device = source.dtype, source.device
        self._bounds = [*range(0, source.num_samples, TILE_ROWS), source.num_samples]
        self._slots = {(i, j): self._file.append(tile) for i, j, tile in _tiles(source, self._bounds, memory_bound)}

    def product(self, vectors: Tensor) -> Tensor:
        """K u, [N, k], in the tiles' dtype."""
        out = torch.zeros(vectors.shape, dtype=self._dtype, device=self._device)
        rows = [slice(start, stop) for start, stop in zip(self._bounds, self._bounds[1:], strict=False)]
        for (i, j), slot in self._slots.items():
            tile = self._file.mapped(slot)
            out[rows[i]] += thin_product(tile, vectors[rows[j]])
            if i != j:
                out[rows[j]] += thin_product(tile.T, vectors[rows[i]])
        return out


def _tiles(
    source: GradientMatrix | StreamingGradients, bounds: list[int], memory_bound: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(i, j, K_ij) for i ≤ j: a band of row blocks is held while all later ones pass by."""
    first = 0
    while first < len(bounds) - 1:
        held: list[GradientMatrix] = []
        room = memory_bound
        for j, block in enumerate(_row_blocks(source, bounds, first), first):
            size = factor_bytes(block)
            if j == first:
                room -= _BLOCKS_IN_FLIGHT * size + _TILES_IN_FLIGHT * block.dtype.itemsize * block.num_samples**2
            if j == first + len(held) and (size <= room or not held):
                held.append(block)
                room -= size
            yield from ((first + i, j, cross_gram(rows, block)) for i, rows in enumerate(held))
        first += len(held)


def _row_blocks(source: GradientMatrix | StreamingGradients, bounds: list[int], first: int) -> Iterator[GradientMatrix]:
    """One pass over the rows of G from a block on, cut at the bounds whatever the chunks."""
    parts: list[GradientMatrix] = []
    done, block = 0, first
    for chunk in source.chunks():
        start = min(max(bounds[first] - done, 0), chunk.num_samples)
        done += start
        while start < chunk.num_samples:
            stop = min(chunk.num_samples, start + bounds[block + 1] - done)
            parts.append(chunk.select(torch.arange(start, stop)))
            done, start = done + stop - start, stop
            if done == bounds[block + 1]:
                yield parts[0] if len(parts) == 1 else GradientMatrix.stack(parts)
                parts, block = [], block + 1


@full_precision
def cross_gram(rows: GradientMatrix, columns: GradientMatrix) -> Tensor:
    """K between two sets of samples, [N, M]: Σ (A Aᵀ + c) ⊙ (B Bᵀ) over the layers, c = 1 for a bias."""
    out = torch.zeros(rows.num_samples, columns.num_samples, dtype=rows.dtype, device=rows.device)
    for name, layer in rows.layers.items():
        other = columns.layers[name]
        if not layer.entries and not other.entries:  # not used in the loss
            continue
        # One position a sample: the product above. Anything else: the layer's own Gram matrix of both sets together.
        plain = layer.plain and other.plain
        a, b = (part.entries[0].factors if plain else None for part in (layer, other))
        if isinstance(a, Dense) and isinstance(b, Dense) and a.num_positions == b.num_positions == 1:
            products = a.inputs[:, 0] @ b.inputs[:, 0].T
            products += float(a.bias)
            out += products.mul_(a.output_grads[:, 0] @ b.output_grads[:, 0].T)
        else:
            out += GradientMatrix.stack([layer, other]).gram()[: rows.num_samples, rows.num_samples :]
    return out
