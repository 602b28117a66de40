"""The diagonal of the Gram matrix and its products with a few vectors, without the Gram matrix."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES, check_dense_factors, gram
from sgdkern.ops.registry import Arguments, Cost, op

# The reference forms so many numbers of K at once.
FORMED_AT_ONCE = 2**22


def check_weights(op: str, weights: Tensor, like: Tensor) -> None:
    """Raise what a user can get wrong about weights of samples.

    Args:
        op: Whose error it is.
        weights: W [N, k].
        like: A factor, samples first.

    Raises:
        ValueError: If shape, dtype or device do not fit the factor.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if weights.dim() != 2 or weights.shape[0] != like.shape[0]:
        raise ValueError(
            f"{op}: weights must be [N, k] with N = {like.shape[0]}, got {list(weights.shape)}. Make columns of them."
        )
    if weights.dtype != dtype or weights.device != like.device:
        kinds = f"{weights.dtype} on {weights.device}"
        raise ValueError(f"{op}: weights must be {dtype} on {like.device}, got {kinds}. Convert them first.")


def _check(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], weights: Tensor
) -> None:
    check_dense_factors("gram_matvec", inputs, output_grads, constant_columns)
    check_weights("gram_matvec", weights, inputs[0])


def _cost(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], weights: Tensor
) -> Cost:
    """Those of K, and two flops a multiply-add with the weights; factors and weights read, the result written, once."""
    num_samples, num_columns = weights.shape
    features = sum(factor.shape[1] for factor in (*inputs, *output_grads))
    read = num_samples * features * inputs[0].element_size()
    return Cost(
        num_samples**2 * (features + 2 * num_columns), read + num_samples * (2 * num_columns + 1) * weights.itemsize
    )


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Those of `gram` and one with several tiles, each with no, one or some weights, in rows with a stride."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.promote_types(dtype, torch.float32)
    several = [torch.randn(450, width, generator=generator).to(device, dtype) for width in (9, 4)]
    samples = [*gram.sample_inputs(dtype, device), (several[:1], several[1:], [True])]
    for place, (inputs, output_grads, constant_columns) in enumerate(samples):
        weights = torch.randn(inputs[0].shape[0], 5, generator=generator).to(device, wide)
        yield inputs, output_grads, constant_columns, weights[:, : (1, 3, 0, 2)[place % 4]]


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def gram_matvec(
    inputs: Sequence[Tensor], output_grads: Sequence[Tensor], constant_columns: Sequence[bool], weights: Tensor
) -> Tensor:
    """Squared norms of per-sample gradients, and K W with K = Σ_layers (A Aᵀ + c) ∘ (D Dᵀ), a part of K at a time.

    Cheaper than G (Gᵀ W) where samples are few beside the layers' widths: a pair of samples costs I + O.

    Args:
        inputs: One A [N, I] a layer, float64, float32, bfloat16 or float16.
        output_grads: One D [N, O] a layer, the same dtype.
        constant_columns: Whether the layer's inputs have a constant column of ones (a bias), which is not stored.
        weights: W [N, k], float64 for float64 factors, else float32.

    Returns:
        [N, 1 + k]: the diagonal of K, then K W; in the dtype of W.

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> gram_matvec([a], [d], [True], torch.ones(2, 1))
        tensor([[ 6., 15.],
                [18., 27.]])
    """
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    num_samples = inputs[0].shape[0]
    norms, products = weights.new_zeros(num_samples, dtype=dtype), torch.zeros_like(weights)
    step = max(1, FORMED_AT_ONCE // max(1, num_samples))
    for a, d, constant_column in zip(inputs, output_grads, constant_columns, strict=True):
        a, d = a.to(dtype), d.to(dtype)
        norms += (a.square().sum(1) + float(constant_column)) * d.square().sum(1)
        for start in range(0, num_samples, step):
            part = slice(start, start + step)
            products[part] += ((a[part] @ a.T + float(constant_column)) * (d[part] @ d.T)) @ weights
    return torch.cat([norms[:, None], products], 1)
