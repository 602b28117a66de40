"""The Gram matrix of per-sample gradients from the layers' factors."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from sgdkern.ops.registry import Arguments, Cost, op

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_dense_factors(
    op: str, inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool]
) -> None:
    """Raise what a user can get wrong about the factors of layers that are used once a sample.

    Args:
        op: Whose error it is.
        inputs: One A [N, I] a layer.
        output_grads: One D [N, O] a layer.
        constant_columns: One flag a layer.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit together.
        NotImplementedError: If there is no arithmetic for the dtype.
    """
    if not len(inputs) == len(output_grads) == len(constant_columns):
        counts = f"{len(inputs)}, {len(output_grads)} and {len(constant_columns)}"
        raise ValueError(f"{op}: inputs, output_grads and constant_columns must have one entry a layer, got {counts}.")
    if not inputs:
        raise ValueError(f"{op}: at least one layer is needed, got none. Did `params` leave any?")
    first = inputs[0]
    if first.dtype not in DTYPES:
        raise NotImplementedError(f"{op}: dtype must be one of {[str(d) for d in DTYPES]}, got {first.dtype}.")
    for factor in chain(inputs, output_grads):
        if factor.dim() != 2:
            raise ValueError(f"{op}: factors must be [N, features], got {list(factor.shape)}. Flatten other axes.")
        if factor.shape[0] != first.shape[0]:
            shapes = f"{list(first.shape)} and {list(factor.shape)}"
            raise ValueError(
                f"{op}: factors must share N, got {shapes}. Was a layer called on another number of samples?"
            )
        if factor.dtype != first.dtype or factor.device != first.device:
            kinds = f"{first.dtype} on {first.device} and {factor.dtype} on {factor.device}"
            raise ValueError(f"{op}: factors must share dtype and device, got {kinds}. Convert them first.")


def _check(inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool]) -> None:
    check_dense_factors("gram", inputs, output_grads, constant_columns)


def _cost(inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool]) -> Cost:
    """Two flops a multiply-add, half of the symmetric products; every factor read, and K written, once."""
    num_samples = inputs[0].shape[0]
    features = sum(factor.shape[1] for factor in chain(inputs, output_grads))
    read = sum(factor.numel() * factor.element_size() for factor in chain(inputs, output_grads))
    return Cost(num_samples**2 * features, read + num_samples**2 * max(4, inputs[0].element_size()))


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Odd sizes around every tile edge, empty and size-one axes, rows with a stride, transposed factors."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for num_samples, widths in [
        (1, (1, 1)),
        (0, (3, 2)),
        (5, (0, 4, 3)),
        (33, (7, 16, 1, 5)),
        (97, (40, 31, 10)),
        (200, (3, 385, 2)),
    ]:
        pairs = list(zip(widths, widths[1:], strict=False))
        inputs = [normal(num_samples, width) for width, _ in pairs]
        yield inputs, [normal(num_samples, width) for _, width in pairs], [i % 2 == 0 for i in range(len(pairs))]
    yield [normal(20, 34)[:, 1:18]], [normal(9, 20).T], [True]
    yield [normal(40, 6)[::2, ::3]], [normal(1, 3).expand(20, 3)], [False]


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def gram(inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool]) -> Tensor:
    """Inner products of all pairs of per-sample gradients, summed over layers.

    The gradient of sample n in a layer is b_n [a_n, 1]ᵀ, so that K = Σ_layers (A Aᵀ + c) ∘ (D Dᵀ), c = 1 with a bias.

    Args:
        inputs: One A [N, I] a layer, float64, float32, bfloat16 or float16.
        output_grads: One D [N, O] a layer, the same dtype.
        constant_columns: Whether the layer's inputs have a constant column of ones (a bias), which is not stored.

    Returns:
        K [N, N], float64 for float64 factors, else float32.

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> gram([a], [d], [True])
        tensor([[ 6.,  9.],
                [ 9., 18.]])
    """
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    total = inputs[0].new_zeros(inputs[0].shape[0], inputs[0].shape[0], dtype=dtype)
    for a, d, constant_column in zip(inputs, output_grads, constant_columns, strict=True):
        a, d = a.to(dtype), d.to(dtype)
        total += (a @ a.T + float(constant_column)) * (d @ d.T)
    return total
