"""What a linear layer adds to G v: the products of its per-sample gradients with one vector."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgdkern.ops.registry import Arguments, Cost, op

DTYPES = (torch.float64, torch.float32)


def check_linear(name: str, inputs: Tensor, output_grads: Tensor, other: Tensor, shape: list[int]) -> None:
    """Raise what a user can get wrong about a linear layer's factors and the vector they are multiplied with.

    Args:
        name: The operation.
        inputs: A [M, I].
        output_grads: D [M, O].
        other: The vector.
        shape: The shape that it must have.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together.
        NotImplementedError: If there is no arithmetic for the dtype.
    """
    if inputs.dim() != 2 or output_grads.dim() != 2 or inputs.shape[0] != output_grads.shape[0]:
        shapes = f"{list(inputs.shape)} and {list(output_grads.shape)}"
        raise ValueError(f"{name}: factors must be [M, I] and [M, O], got {shapes}. Flatten samples and positions.")
    if list(other.shape) != shape:
        raise ValueError(f"{name}: the vector must be {shape}, got {list(other.shape)}. Reshape it.")
    if inputs.dtype not in DTYPES:
        raise NotImplementedError(f"{name}: dtype must be one of {[str(d) for d in DTYPES]}, got {inputs.dtype}.")
    for tensor in (output_grads, other):
        if tensor.dtype != inputs.dtype or tensor.device != inputs.device:
            kinds = f"{inputs.dtype} on {inputs.device} and {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name}: all arguments must share dtype and device, got {kinds}. Convert them first.")


def _check(inputs: Tensor, output_grads: Tensor, vector: Tensor) -> None:
    features = [output_grads.shape[-1], inputs.shape[-1]] if inputs.dim() == output_grads.dim() == 2 else []
    check_linear("matvec", inputs, output_grads, vector, features)


def linear_cost(inputs: Tensor, output_grads: Tensor, weights: Tensor) -> Cost:
    """Two flops a multiply-add of M · O · I; every argument read, and the result written, once.

    Args:
        inputs: A [M, I].
        output_grads: D [M, O].
        weights: V [O, I] or w [M].

    Returns:
        The cost of a product with G or with its transpose.
    """
    num_rows, num_outputs, num_inputs = inputs.shape[0], output_grads.shape[1], inputs.shape[1]
    numbers = inputs.numel() + output_grads.numel() + num_rows + num_outputs * num_inputs
    return Cost(2 * num_rows * num_outputs * num_inputs, numbers * weights.element_size())


def linear_samples(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Factors around every tile edge, empty and single; rows with a stride, transposed factors.

    Args:
        dtype: Of the factors.
        device: Where they shall be.

    Yields:
        A [M, I] and D [M, O].
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sizes = [(1, 1, 1), (0, 3, 2), (5, 0, 4), (5, 4, 0), (33, 17, 6), (65, 64, 66), (300, 31, 10), (70, 130, 129)]
    for num_rows, num_inputs, num_outputs in sizes:
        yield normal(num_rows, num_inputs), normal(num_rows, num_outputs)
    yield normal(20, 34)[:, 1:18], normal(9, 20).T
    yield normal(40, 6)[::2, ::3], normal(1, 3).expand(20, 3)


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Linear layers' factors, each with a vector."""
    generator = torch.Generator().manual_seed(1)
    for inputs, output_grads in linear_samples(dtype, device):
        shape = output_grads.shape[1], inputs.shape[1]
        yield inputs, output_grads, torch.randn(*shape, generator=generator).to(device, dtype)


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=linear_cost)
def matvec(inputs: Tensor, output_grads: Tensor, vector: Tensor) -> Tensor:
    """Products of a linear layer's per-sample gradients with one vector: y_m = d_mᵀ V a_m.

    The gradient of row m is d_m a_mᵀ, and ⟨d_m a_mᵀ, V⟩ = d_mᵀ V a_m: a row is a sample, or one of its positions.

    Args:
        inputs: A [M, I], float64 or float32.
        output_grads: D [M, O], the same dtype.
        vector: V [O, I], the same dtype.

    Returns:
        y [M].

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> matvec(a, d, torch.tensor([[1.0, 10.0]]))
        tensor([21., 30.])
    """
    return (inputs @ vector.T).mul_(output_grads).sum(1)
