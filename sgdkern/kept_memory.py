"""kept_memory: freed memory stays with the process, so that the next measurement finds it there."""

import sys
from functools import cache

import torch

# glibc adapts up to blocks of 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX), its own header and torch's alignment included.
LARGEST_KEPT = 32 * 2**20 - 4096


@cache
def keep_freed_memory() -> None:
    """Free one block of almost 32 MiB, once a process, which glibc takes as the size of blocks to be kept from then on.

    A process starts with a threshold of 128 KiB: larger blocks come from the system, and go back to it when they are
    freed. Each such block that is freed raises it to the block's size (`mallopt(3)`, M_MMAP_THRESHOLD), up to 32 MiB,
    and makes twice of that the free memory that stays at the heap's end. A pass whose blocks have just that size gives
    its memory back at its end, and pays for fresh pages at its next beginning (decision 19). The block itself is never
    written to, so that it takes no memory; thresholds that a user has set (MALLOC_MMAP_THRESHOLD_,
    MALLOC_TRIM_THRESHOLD_) do not adapt and stay; other allocators do not mind.
    """
    if sys.platform == "linux":
        torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")
