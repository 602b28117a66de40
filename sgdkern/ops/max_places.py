"""Where the largest numbers of an image's windows are, which is all that max pooling has to find out."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdkern.ops.gram import DTYPES
from sgdkern.ops.registry import Arguments, Cost, op

# The largest window and stride: products of sizes then fit 64 bits.
MOST = 2**30


def _check(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> None:
    if inputs.dim() != 4:
        raise ValueError(f"max_places: inputs must be [N, C, H, W], got {list(inputs.shape)}.")
    if inputs.dtype not in DTYPES:
        raise NotImplementedError(f"max_places: dtype must be one of {list(map(str, DTYPES))}, got {inputs.dtype}.")
    pairs = len(kernel) == len(stride) == len(padding) == 2
    if not pairs or min(*kernel, *stride) < 1 or max(*kernel, *stride) > MOST:
        sizes = f"{list(kernel)}, {list(stride)} and {list(padding)}"
        raise ValueError(
            f"max_places: kernel, stride and padding must be pairs of positive numbers up to {MOST}, got {sizes}."
        )
    for size, window, border in zip(inputs.shape[2:], kernel, padding, strict=True):
        if not (0 <= 2 * border <= window <= size + 2 * border and size):
            raise ValueError(
                "max_places: windows must fit their planes, padded by at most half a window, got windows of "
                f"{list(kernel)} with padding {list(padding)} for {list(inputs.shape[2:])}."
            )


def _cost(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Cost:
    """A comparison for each number of each window; inputs read, and places written, once."""
    outputs = max_places.reference(inputs.to("meta"), kernel, stride, padding, ceil_mode)
    return Cost(outputs.numel() * prod(kernel), inputs.nbytes + outputs.nbytes)


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Common and odd windows, clipped on every side; numbers that are equal and infinite; strides."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:  # many equal ones
        return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)

    for shape, kernel, stride, padding, ceil_mode in [
        ((3, 2, 8, 8), (2, 2), (2, 2), (0, 0), False),
        ((2, 3, 7, 9), (2, 2), (2, 2), (1, 1), True),
        ((2, 1, 56, 40), (3, 3), (2, 2), (1, 1), False),
        ((1, 2, 9, 40), (3, 3), (1, 1), (1, 0), False),
        ((2, 2, 5, 37), (3, 3), (2, 2), (0, 0), True),
        ((2, 2, 6, 11), (2, 3), (3, 2), (1, 1), False),
        ((1, 1, 1, 1), (2, 2), (2, 2), (1, 1), False),
        ((2, 2, 4, 4), (4, 4), (4, 4), (0, 0), False),
        ((0, 3, 4, 4), (2, 2), (2, 2), (0, 0), False),
    ]:
        yield whole(*shape), kernel, stride, padding, ceil_mode
    odd = whole(3, 2, 6, 70)
    odd[0, 1, :, 20:40], odd[1, :, 2:4] = -torch.inf, torch.inf
    yield odd, (2, 2), (2, 2), (0, 0), False
    yield odd.movedim(1, 3).contiguous().movedim(3, 1), (3, 3), (2, 2), (1, 1), True
    yield whole(4, 4, 9, 9)[::2, 1:, ::2, 1:], (2, 2), (1, 1), (0, 0), False


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def max_places(
    inputs: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """Where in its plane the largest number of each window is: the indices of max pooling.

    Of equal numbers the first; a NaN is larger than any number, and of several the last.

    Args:
        inputs: x [N, C, H, W]; float64, float32, bfloat16 or float16.
        kernel: Height and width of a window.
        stride: Along both axes.
        padding: By which windows may reach beyond the plane, along both axes; at most half of the kernel.
        ceil_mode: Whether a last window that reaches further counts.

    Returns:
        Places [N, C, H', W'], row times W plus column, int64.

    Example:
        >>> max_places(torch.tensor([[[[1.0, 2.0, 5.0, 0.0], [4.0, 3.0, 5.0, 0.0]]]]), (2, 2), (2, 2), (0, 0), False)
        tensor([[[[4, 2]]]])
    """
    _, places = F.max_pool2d(
        inputs, list(kernel), list(stride), list(padding), ceil_mode=ceil_mode, return_indices=True
    )
    return places
