"""Freed memory that stays with the process: where glibc takes a block from, as it tells itself, in fresh processes."""

import os
import platform
import subprocess
import sys

import pytest

MAPPED = """
import ctypes, torch
from sgdkern.kept_memory import keep_freed_memory

class Information(ctypes.Structure):  # mallinfo(3)
    _fields_ = [(name, ctypes.c_int) for name in ("arena", "ordblks", "smblks", "hblks")] + [("rest", ctypes.c_int * 6)]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Information
{call}
before = mallinfo().hblks
block = torch.empty(24 * 2**20, dtype=torch.uint8)
print(mallinfo().hblks - before)
"""


def mapped(call: str, **environment: str) -> int:
    """How many blocks the system gave for a tensor of 24 MiB; it gets them back when the tensor is freed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = MAPPED.format(call=call)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain | environment
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory in their own ways")
def test_large_blocks_stay_with_the_process() -> None:
    assert mapped("") == 1
    assert mapped("keep_freed_memory()") == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory in their own ways")
def test_what_the_user_has_set_stays() -> None:
    assert mapped("keep_freed_memory()", MALLOC_MMAP_THRESHOLD_="1000000") == 1
