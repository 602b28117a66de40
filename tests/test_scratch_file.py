"""Tensors come back from a scratch file as they went in, and nothing stays behind."""

from pathlib import Path

import pytest
import torch

from sgdkern.scratch_file import ScratchFile

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    file = ScratchFile(tmp_path / "new" / "folder")
    tensors = [
        torch.arange(24).view(2, 3, 4).to(dtype),
        torch.zeros(0, 5, dtype=dtype),
        torch.ones(3, 2, dtype=dtype).T,
    ]
    slots = [file.append(tensor) for tensor in tensors]
    for tensor, slot in zip(tensors, slots, strict=True):
        assert torch.equal(file.mapped(slot), tensor)
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_what_is_written_into_a_mapped_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    file = ScratchFile(tmp_path)
    slot = file.append(torch.ones(5))
    file.mapped(slot).zero_()
    assert torch.equal(file.mapped(slot), torch.ones(5))


def test_a_mapped_tensor_outlives_its_file(tmp_path: Path) -> None:
    tensor = (file := ScratchFile(tmp_path)).mapped(file.append(torch.arange(10.0)))
    del file
    assert torch.equal(tensor, torch.arange(10.0))


def test_cleared_room_is_used_again(tmp_path: Path) -> None:
    file = ScratchFile(tmp_path)
    first = file.append(torch.ones(5))
    file.clear()
    again = file.append(torch.zeros(7))
    assert again.offset == first.offset
    assert torch.equal(file.mapped(again), torch.zeros(7))
