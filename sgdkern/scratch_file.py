"""ScratchFile: tensors in a file without a name, which ends with the object that holds it."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the file, and what it was.

    Attributes:
        offset: In bytes, a multiple of the page size, so that it can be mapped.
        shape: Its shape.
        dtype: Its dtype.
        device: Its device.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class ScratchFile:
    """Append tensors, and get them back read into memory or mapped.

    Args:
        folder: Where the file goes; it is unlinked at once, so that nothing is left behind even by a crash.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor, name = tempfile.mkstemp(dir=folder, prefix="sgdkern-")
        os.unlink(name)
        weakref.finalize(self, os.close, self._descriptor)
        self._end = 0

    def append(self, tensor: Tensor) -> Slot:
        """Write a tensor at the end of the file.

        Args:
            tensor: Any dtype and device.

        Returns:
            Where it lies.
        """
        slot = Slot(self._end, tuple(tensor.shape), tensor.dtype, tensor.device)
        rest = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        place = self._end
        while len(rest):
            written = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[written:], place + written
        self._end = -(-place // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return slot

    def mapped(self, slot: Slot) -> Tensor:
        """The tensor as mapped memory that is read when it is touched; on another device, a copy."""
        if not slot.num_bytes:
            return torch.empty(slot.shape, dtype=slot.dtype, device=slot.device)
        # Copy on write: torch wants writable memory. What is written does not reach the file.
        memory = mmap.mmap(self._descriptor, slot.num_bytes, access=mmap.ACCESS_COPY, offset=slot.offset)
        return torch.frombuffer(memory, dtype=slot.dtype).view(slot.shape).to(slot.device)

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._descriptor, 0)
        self._end = 0
