"""Squared norms of the summed gradients of minibatches from the layers' factors, without the Gram matrix."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES, check_dense_factors
from sgdkern.ops.registry import Arguments, Cost, op

# The reference gathers the rows of so many numbers at once.
GATHERED_AT_ONCE = 2**22


def _check(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], indices: Tensor
) -> None:
    check_dense_factors("minibatch_norms", inputs, output_grads, constant_columns)
    if indices.dim() != 2 or indices.dtype != torch.int64:
        raise ValueError(
            f"minibatch_norms: indices must be int64 [M, B], got {indices.dtype} {list(indices.shape)}. Reshape them."
        )
    if indices.device != inputs[0].device:
        devices = f"{indices.device} and {inputs[0].device}"
        raise ValueError(f"minibatch_norms: indices and factors must share a device, got {devices}. Move the indices.")
    if indices.numel() and not indices.is_meta:
        least, most = (int(bound) for bound in indices.aminmax())
        if least < 0 or most >= inputs[0].shape[0]:
            raise ValueError(
                f"minibatch_norms: indices must be in [0, {inputs[0].shape[0]}), got {least} to {most}. Were they "
                "drawn for other samples?"
            )


def _cost(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], indices: Tensor
) -> Cost:
    """Two flops a multiply-add, each pair of a minibatch once; its rows read once, the result written."""
    # Counted so also where the kernel sums gradients instead, which is less.
    num_minibatches, size = indices.shape
    features = sum(factor.shape[1] for factor in (*inputs, *output_grads))
    read = num_minibatches * size * (features * inputs[0].element_size() + 8)
    return Cost(num_minibatches * size * (size + 1) * features, read + num_minibatches * 8)


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Minibatches around every block edge, empty and single, with repeated samples; rows with a stride."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for num_samples, widths, shape in [
        (1, (1, 1), (1, 1)),
        (5, (0, 4, 3), (3, 2)),
        (3, (3, 2), (0, 2)),
        (0, (3, 2), (4, 0)),
        (40, (33, 16, 1, 5), (7, 5)),
        (33, (7, 50), (4, 11)),
        (97, (40, 31, 10), (5, 25)),
        (64, (200, 3), (2, 64)),
        (50, (70, 40), (2, 45)),
    ]:
        inputs = [normal(num_samples, width) for width in widths[:-1]]
        output_grads = [normal(num_samples, width) for width in widths[1:]]
        indices = torch.randint(max(1, num_samples), shape, generator=generator).to(device)
        yield inputs, output_grads, [i % 2 == 0 for i in range(len(inputs))], indices
    indices = torch.arange(20, device=device).view(4, 5).T
    yield [normal(20, 34)[:, 1:18]], [normal(9, 20).T], [True], indices


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def minibatch_norms(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], indices: Tensor
) -> Tensor:
    """Squared norms of sums of per-sample gradients over minibatches: ‖Σ_{n∈µ} g_n‖², blocks of the Gram matrix summed.

    With A_µ, D_µ the rows of minibatch µ this is the sum of all entries of Σ_layers (A_µ A_µᵀ + c) ∘ (D_µ D_µᵀ), c = 1
    with a bias. A sample that a minibatch holds twice counts twice.

    Args:
        inputs: One A [N, I] a layer, float64, float32, bfloat16 or float16.
        output_grads: One D [N, O] a layer, the same dtype.
        constant_columns: Whether the layer's inputs have a constant column of ones (a bias), which is not stored.
        indices: Members of each minibatch, int64 [M, B].

    Returns:
        Squared norms [M], float64 for float64 factors, else float32.

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> minibatch_norms([a], [d], [True], torch.tensor([[0, 1], [1, 1]]))
        tensor([42., 72.])
    """
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    total = inputs[0].new_zeros(indices.shape[0], dtype=dtype)
    for a, d, constant_column in zip(inputs, output_grads, constant_columns, strict=True):
        at_once = max(1, GATHERED_AT_ONCE // max(1, indices.shape[1] * (a.shape[1] + d.shape[1])))
        for start in range(0, indices.shape[0], at_once):
            some = indices[start : start + at_once]
            rows, grads = a[some].to(dtype), d[some].to(dtype)
            blocks = (rows @ rows.mT + float(constant_column)) * (grads @ grads.mT)
            total[start : start + at_once] += blocks.sum((1, 2))
    return total
