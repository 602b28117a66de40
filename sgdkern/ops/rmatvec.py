"""What Gᵀ w has of a linear layer: a weighted sum of its per-sample gradients."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgdkern.ops.matvec import DTYPES, check_linear, linear_cost, linear_samples
from sgdkern.ops.registry import Arguments, op


def _check(inputs: Tensor, output_grads: Tensor, weights: Tensor) -> None:
    check_linear("rmatvec", inputs, output_grads, weights, [*inputs.shape[:1]])


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Linear layers' factors, each with weights."""
    generator = torch.Generator().manual_seed(1)
    for inputs, output_grads in linear_samples(dtype, device):
        yield inputs, output_grads, torch.randn(inputs.shape[0], generator=generator).to(device, dtype)


@op(dtypes=DTYPES, check=_check, sample_inputs=_sample_inputs, cost=linear_cost)
def rmatvec(inputs: Tensor, output_grads: Tensor, weights: Tensor) -> Tensor:
    """A weighted sum of a linear layer's per-sample gradients: V = Σ_m w_m d_m a_mᵀ.

    Args:
        inputs: A [M, I], float64 or float32.
        output_grads: D [M, O], the same dtype.
        weights: w [M], the same dtype.

    Returns:
        V [O, I].

    Example:
        >>> a, d = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
        >>> rmatvec(a, d, torch.tensor([1.0, 2.0]))
        tensor([[1., 8.]])
    """
    return (output_grads * weights[:, None]).T @ inputs
