"""Outputs of a linear layer with few of them, which general matrix products are slow at."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdkern.ops.registry import Arguments, Cost, op

_DTYPES = (torch.float64, torch.float32)


def _check(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if inputs.dim() != 2 or weight.dim() != 2 or inputs.shape[1] != weight.shape[1]:
        shapes = f"{list(inputs.shape)} and {list(weight.shape)}"
        raise ValueError(f"narrow_linear: inputs must be [N, I], the weight [O, I], got {shapes}. Flatten other axes.")
    if bias is not None and bias.shape != weight.shape[:1]:
        sizes = f"{list(weight.shape[:1])}, got {list(bias.shape)}"
        raise ValueError(f"narrow_linear: the bias must be {sizes}. Expand it.")
    if inputs.dtype not in _DTYPES:
        raise NotImplementedError(f"narrow_linear: dtype must be one of {list(map(str, _DTYPES))}, got {inputs.dtype}.")
    for tensor in (weight,) if bias is None else (weight, bias):
        if tensor.dtype != inputs.dtype or tensor.device != inputs.device:
            kinds = f"{inputs.dtype} on {inputs.device} and {tensor.dtype} on {tensor.device}"
            raise ValueError(f"narrow_linear: all must share dtype and device, got {kinds}. Convert them first.")


def _cost(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Cost:
    """Two flops a multiply-add; every argument read, and the result written, once."""
    (rows, features), outputs = inputs.shape, weight.shape[0]
    numbers = rows * features + (rows + features) * outputs + (0 if bias is None else outputs)
    return Cost(2 * rows * features * outputs, numbers * inputs.element_size())


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Layers around every block's edge, empty and single ones; more features than one block; strides."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sizes = [(1, 1, 1), (0, 3, 2), (4, 0, 3), (5, 4, 0), (33, 17, 16), (61, 300, 5), (7, 1030, 11), (31, 2049, 3)]
    for rows, features, outputs in sizes:
        yield normal(rows, features), normal(outputs, features), normal(outputs)
        yield normal(rows, features), normal(outputs, features), None
    yield normal(50, 40)[1::2, ::3], normal(14, 20).T, normal(40)[::2]
    yield normal(64, 300)[:, 3:260], normal(1, 257).expand(6, -1), None


@op(dtypes=_DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def narrow_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs of a linear layer: Y = X Wᵀ + b.

    Args:
        inputs: X [N, I], float64 or float32; rows that lie together are read where they are.
        weight: W [O, I], the same dtype; made for O up to about a hundred.
        bias: b [O], the same dtype, or None.

    Returns:
        Y [N, O].

    Example:
        >>> narrow_linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 10.0]]), torch.tensor([0.5]))
        tensor([[21.5000],
                [43.5000]])
    """
    return F.linear(inputs, weight, bias)
