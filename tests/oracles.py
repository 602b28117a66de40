"""The slow and obvious truth about per-sample gradients: a loop over samples with plain autograd, and a dense G."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def one_sample(batch: Any, sample: int) -> Any:
    """A batch of one sample."""
    if isinstance(batch, Tensor):
        return batch[sample : sample + 1]
    if isinstance(batch, dict):
        return {key: one_sample(value, sample) for key, value in batch.items()}
    return tuple(one_sample(value, sample) for value in batch)


def in_double(batch: Any) -> Any:
    """A batch with its floating-point tensors in double precision."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: in_double(value) for key, value in batch.items()}
    return tuple(in_double(value) for value in batch)


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs, for positional or keyword arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def flat_gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    """∂loss/∂θ with all parameters one after the other, [P]."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    dense = [
        torch.zeros_like(parameter) if grad is None else grad.to_dense() if grad.is_sparse else grad
        for grad, parameter in zip(grads, parameters, strict=True)
    ]
    return torch.cat([grad.flatten() for grad in dense])


def gradient_rows(loss_of: Callable[[int], Tensor], parameters: list[Tensor], num_samples: int) -> Tensor:
    """G, one backward pass a sample, [N, P]."""
    return torch.stack([flat_gradient(loss_of(sample), parameters).detach() for sample in range(num_samples)])


def per_sample_gradients(
    model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor], num_samples: int, names: list[str] | None = None
) -> Tensor:
    """G of losses that are a function of the outputs, in the model's own dtype, [N, P]."""
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (names is None or name in names)
    ]
    return gradient_rows(lambda sample: loss(called(model, one_sample(inputs, sample))).sum(), parameters, num_samples)


def assert_accurate(
    found: Tensor, plain: Tensor, truth: Tensor, function: Callable[[Tensor], Tensor], size: Callable[[Tensor], Tensor]
) -> None:
    """f(G) is at most twice as far off as the errors of plain autograd's G can put it, plus one rounding of its size.

    f adds products of elements of G. Its size f̃(|G|), with absolute values for all that is added up, grows with every
    element, so f̃(|G| + |ΔG|) − f̃(|G|) bounds what errors ΔG do to f. ΔG is what plain autograd in the model's own
    dtype has against float64, sample by sample; no element is taken to be nearer than its own rounding.

    Args:
        found: the result under test, f(G).
        plain: G by a loop over samples with plain autograd in the model's dtype, [N, P].
        truth: G in float64, [N, P].
        function: f.
        size: f̃, which is f where f has no factors of its own with a sign.
    """
    epsilon, sizes = torch.finfo(plain.dtype).eps, truth.abs()
    errors = torch.maximum((plain.double() - truth).abs(), epsilon * sizes)
    expected, scale = function(truth), size(sizes)
    allowed = 2 * (size(sizes + errors) - scale).norm() + epsilon * scale.norm()
    error = (found.double() - expected).norm()
    assert found.shape == expected.shape
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}, size {expected.norm():.3g}"
