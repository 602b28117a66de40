"""The Gram matrix of a layer that is used at several positions, by products of pairs of positions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgdkern.ops.gram import DTYPES
from sgdkern.ops.registry import Arguments, Cost, op

# The reference multiplies so many pairs of positions at once.
PAIRS_AT_ONCE = 2**24


def _check(inputs: Tensor, output_grads: Tensor, constant_column: bool) -> None:
    for factor in (inputs, output_grads):
        if factor.dim() != 3:
            raise ValueError(
                f"gram_positions: factors must be [N, T, features], got {list(factor.shape)}. Flatten other axes."
            )
    if inputs.shape[:2] != output_grads.shape[:2]:
        shapes = f"{list(inputs.shape)} and {list(output_grads.shape)}"
        raise ValueError(
            f"gram_positions: inputs and output_grads must share N and T, got {shapes}. Was a layer called "
            "twice in one forward pass?"
        )
    if inputs.dtype not in DTYPES:
        raise NotImplementedError(
            f"gram_positions: dtype must be one of {[str(d) for d in DTYPES]}, got {inputs.dtype}."
        )
    if inputs.dtype != output_grads.dtype or inputs.device != output_grads.device:
        kinds = f"{inputs.dtype} on {inputs.device} and {output_grads.dtype} on {output_grads.device}"
        raise ValueError(f"gram_positions: factors must share dtype and device, got {kinds}. Convert one of them.")


def _cost(inputs: Tensor, output_grads: Tensor, constant_column: bool) -> Cost:
    """Two flops a multiply-add, half of the symmetric products; both factors read, and K written, once."""
    num_samples, num_positions, in_features = inputs.shape
    read = inputs.element_size() * (inputs.numel() + output_grads.numel())
    flops = (num_samples * num_positions) ** 2 * (in_features + output_grads.shape[2])
    return Cost(flops, read + num_samples**2 * max(4, inputs.element_size()))


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Samples within a tile, across tiles and larger than one; empty and size-one axes; strides of every kind."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    for num_samples, num_positions, in_features, out_features in [
        (1, 1, 1, 1),
        (0, 3, 2, 4),
        (4, 0, 2, 3),
        (5, 3, 0, 4),
        (5, 3, 4, 0),
        (37, 1, 6, 5),
        (33, 7, 17, 16),
        (9, 33, 5, 40),
        (3, 65, 12, 9),
        (2, 200, 3, 20),
        (130, 2, 385, 3),
        (1, 70, 40, 10),
    ]:
        bias = num_positions % 2 == 1
        yield normal(num_samples, num_positions, in_features), normal(num_samples, num_positions, out_features), bias
    yield normal(6, 9, 13).transpose(1, 2), normal(13, 6, 5).transpose(0, 1), True
    yield normal(20, 4, 34)[::2, :, 1:18], normal(10, 8, 3)[:, ::2], False
    yield normal(3, 1, 7).expand(3, 5, 7), normal(1, 5, 6).expand(3, 5, 6), True


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def gram_positions(inputs: Tensor, output_grads: Tensor, constant_column: bool) -> Tensor:
    """Inner products of all pairs of per-sample gradients of a layer that is used at T positions, pair by pair.

    The gradient of sample n is Σ_t b_nt [a_nt, 1]ᵀ, so that K_nm = Σ_{t,s} (a_nt·a_ms + c)(b_nt·b_ms), c = 1 with a
    bias: T² (I + O) multiply-adds for a pair of samples, whatever I·O.

    Args:
        inputs: a [N, T, I], float64, float32, bfloat16 or float16.
        output_grads: b [N, T, O], the same dtype.
        constant_column: Whether the inputs have a constant column of ones (a bias), which is not stored.

    Returns:
        K [N, N], float64 for float64 factors, else float32.

    Example:
        >>> a, b = torch.tensor([[[1.0], [2.0]], [[0.0], [1.0]]]), torch.ones(2, 2, 1)
        >>> gram_positions(a, b, False)
        tensor([[9., 3.],
                [3., 1.]])
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    num_samples, num_positions = inputs.shape[:2]
    rows, grads = inputs.to(dtype).flatten(0, 1), output_grads.to(dtype).flatten(0, 1)
    gram = rows.new_zeros(num_samples, num_samples)
    at_once = max(1, PAIRS_AT_ONCE // max(1, num_samples * num_positions**2))
    for start in range(0, num_samples, at_once):  # some samples against all that are not before them
        stop = min(start + at_once, num_samples)
        some, rest = slice(start * num_positions, stop * num_positions), slice(start * num_positions, None)
        products = (rows[some] @ rows[rest].T + float(constant_column)) * (grads[some] @ grads[rest].T)
        block = products.view(stop - start, num_positions, num_samples - start, num_positions).sum((1, 3))
        gram[start:stop, start:] = block
        gram[start:, start:stop] = block.T
    return gram
