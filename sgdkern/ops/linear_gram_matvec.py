"""The same for a linear layer with few outputs, by two products with its factors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES, check_dense_factors
from sgdkern.ops.gram_matvec import check_weights
from sgdkern.ops.matvec import linear_samples
from sgdkern.ops.registry import Arguments, Cost, op


def _check(inputs: Tensor, output_grads: Tensor, constant_column: bool, weights: Tensor) -> None:
    check_dense_factors("linear_gram_matvec", [inputs], [output_grads], [constant_column])
    check_weights("linear_gram_matvec", weights, inputs)


def _cost(inputs: Tensor, output_grads: Tensor, constant_column: bool, weights: Tensor) -> Cost:
    """Two flops a multiply-add of both products with each column; all read, the result written, once."""
    num_samples, num_columns = weights.shape
    features = inputs.shape[1] + output_grads.shape[1]
    flops = 4 * num_columns * num_samples * inputs.shape[1] * output_grads.shape[1]
    read = num_samples * features * inputs.element_size()
    return Cost(flops + 2 * num_samples * features, read + num_samples * (2 * num_columns + 1) * weights.itemsize)


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Linear layers' factors, each with no, one or some weights, in rows with a stride."""
    generator = torch.Generator().manual_seed(1)
    for place, (inputs, output_grads) in enumerate(linear_samples(dtype, device)):
        weights = torch.randn(inputs.shape[0], 5, generator=generator)
        weights = weights.to(device, torch.promote_types(dtype, torch.float32))
        yield inputs, output_grads, place % 2 == 0, weights[:, : (1, 3, 0, 2)[place % 4]]


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def linear_gram_matvec(inputs: Tensor, output_grads: Tensor, constant_column: bool, weights: Tensor) -> Tensor:
    """Squared norms of a linear layer's per-sample gradients, and K W = G (Gᵀ W).

    Gᵀ w has (w ∘ D)ᵀ A, and a row of G times V is d_nᵀ V a_n.

    Args:
        inputs: A [N, I], float64, float32, bfloat16 or float16.
        output_grads: D [N, O], the same dtype.
        constant_column: Whether the inputs have a constant column of ones (a bias), which is not stored.
        weights: W [N, k], float64 for float64 factors, else float32.

    Returns:
        [N, 1 + k]: the diagonal of K, then K W; in the dtype of W.

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> linear_gram_matvec(a, d, True, torch.ones(2, 1))
        tensor([[ 6., 15.],
                [18., 27.]])
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    a, d = inputs.to(dtype), output_grads.to(dtype)
    squares = d.double().square().sum(1)  # which leave float32's range where a loss saturates
    columns = [((a.square().sum(1) + float(constant_column)) * squares).to(dtype)]
    for weight in weights.unbind(1):
        scaled = d * weight[:, None]
        outputs = a @ (a.T @ scaled) + float(constant_column) * scaled.sum(0)
        columns.append((outputs * d).sum(1))
    return torch.stack(columns, 1)
