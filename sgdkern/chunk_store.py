"""Where a stream's chunks of G stay between passes: in memory, or in a file that is mapped a chunk at a time.

A chunk is a `GradientMatrix`; what is large in it are its factors' tensors. A file holds their bytes one after the
other; what stays in memory is the chunk with a `Slot` in place of each tensor. Nothing is pickled: the file means
nothing without this process.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.scratch_file import ScratchFile, Slot


class ChunkStore(Protocol):
    """What a stream asks of a place to keep chunks in."""

    def put(self, index: int, chunk: GradientMatrix) -> None:
        """Keep a chunk if there is room."""

    def get(self, index: int) -> GradientMatrix | None:
        """The chunk, or None where it was not kept."""

    def __len__(self) -> int:
        """Number of chunks kept."""

    def clear(self) -> None:
        """Forget all chunks."""


class NoStore:
    """Keeps nothing: every pass recomputes."""

    def put(self, index: int, chunk: GradientMatrix) -> None:
        """Keep nothing."""

    def get(self, index: int) -> GradientMatrix | None:
        """Nothing was kept."""
        return None

    def __len__(self) -> int:
        """Number of chunks kept."""
        return 0

    def clear(self) -> None:
        """There is nothing to forget."""


class MemoryStore:
    """Keeps chunks in memory as long as they fit; the rest is recomputed every pass.

    Args:
        limit_bytes: Bytes that the factors kept may take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._room = self._limit = limit_bytes
        self._chunks: dict[int, GradientMatrix] = {}

    def put(self, index: int, chunk: GradientMatrix) -> None:
        """Keep the chunk if it fits."""
        size = factor_bytes(chunk)
        if index not in self._chunks and size <= self._room:
            self._chunks[index] = _without_outputs(chunk)
            self._room -= size

    def get(self, index: int) -> GradientMatrix | None:
        """The chunk, or None where it did not fit."""
        return self._chunks.get(index)

    def __len__(self) -> int:
        """Number of chunks kept."""
        return len(self._chunks)

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()
        self._room = self._limit


class FileStore:
    """Keeps all chunks in a file; their tensors are mapped into memory while they are in use.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self._file = ScratchFile(folder)
        self._chunks: dict[int, GradientMatrix] = {}

    def put(self, index: int, chunk: GradientMatrix) -> None:
        """Append the chunk's tensors to the file; one that several factors share is written once."""
        if index not in self._chunks:
            slots: dict[int, Slot] = {}

            def written(tensor: Tensor) -> Slot:
                if id(tensor) not in slots:
                    slots[id(tensor)] = self._file.append(tensor)
                return slots[id(tensor)]

            self._chunks[index] = _with_tensors(_without_outputs(chunk), written)

    def get(self, index: int) -> GradientMatrix | None:
        """The chunk with its tensors mapped from the file, or None where it was never written."""
        skeleton = self._chunks.get(index)
        return None if skeleton is None else _with_tensors(skeleton, self._file.mapped)

    def __len__(self) -> int:
        """Number of chunks kept."""
        return len(self._chunks)

    def clear(self) -> None:
        """Forget all chunks."""
        self._chunks.clear()
        self._file.clear()


def store(cache: str | os.PathLike[str] | None, limit_bytes: int) -> ChunkStore:
    """The place to keep chunks in that `cache` names: None, "memory", or a folder."""
    if cache is None:
        return NoStore()
    if cache == "memory":
        return MemoryStore(limit_bytes)
    return FileStore(Path(cache))


def factor_bytes(chunk: GradientMatrix) -> int:
    """Bytes of all tensors in the chunk's factors, one that several share counted once."""
    tensors: dict[int, int] = {}
    for entry in chunk.entries:
        for tensor in _tensors(entry.factors).values():
            tensors[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(tensors.values())


def _tensors(factors: Any) -> dict[str, Any]:
    """The fields of some factors that are tensors (or stand for one)."""
    fields = {field.name: getattr(factors, field.name) for field in dataclasses.fields(factors)}
    return {name: value for name, value in fields.items() if isinstance(value, Tensor | Slot)}


def _with_tensors(chunk: GradientMatrix, change: Any) -> GradientMatrix:
    """The chunk with every tensor of its factors changed."""
    entries = []
    for entry in chunk.entries:
        changed = {name: change(tensor) for name, tensor in _tensors(entry.factors).items()}
        factors: Any = entry.factors
        entries.append(dataclasses.replace(entry, factors=dataclasses.replace(factors, **changed)))
    return dataclasses.replace(chunk, entries=tuple(entries), _cache={})


def _without_outputs(chunk: GradientMatrix) -> GradientMatrix:
    """The chunk without the model's outputs, which no pass reads, and without what it has cached."""
    return dataclasses.replace(chunk, outputs=None, _cache={})
