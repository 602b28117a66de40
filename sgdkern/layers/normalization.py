"""Scales and shifts after a normalisation: layer, root-mean-square, group, instance and batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdkern.layers import Call, Example, Unsupported, Use, layer


def _scale_and_shift(
    call: Call, normalized: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]
) -> Iterator[Use]:
    """Weight and bias of x̂ · w + b, where both have ``shape`` beside the output."""
    for parameter, gradient in ((weight, call.output_grad * normalized), (bias, call.output_grad)):
        if parameter is not None and call.tracked(parameter):
            yield Use(call.reduced(gradient, parameter.view(tuple(shape))).factors, (parameter,))


def _layer_norm_examples() -> Iterator[Example]:
    yield Example(nn.LayerNorm(4), (torch.randn(5, 4),))
    yield Example(nn.LayerNorm([3, 4]), (torch.randn(5, 2, 3, 4),))
    yield Example(nn.LayerNorm(4, bias=False), (torch.randn(5, 3, 4),))


@layer(F.layer_norm, examples=_layer_norm_examples)
def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    """Y = x̂ · w + b over the last axes."""
    yield from _scale_and_shift(call, F.layer_norm(input, normalized_shape, eps=eps), weight, bias, normalized_shape)


def _rms_norm_examples() -> Iterator[Example]:
    yield Example(nn.RMSNorm(4), (torch.randn(5, 4),))
    yield Example(nn.RMSNorm([3, 4], eps=1e-3), (torch.randn(5, 2, 3, 4),))


@layer(F.rms_norm, examples=_rms_norm_examples)
def rms_norm(
    call: Call, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Iterator[Use]:
    """Y = x / rms(x) · w over the last axes."""
    yield from _scale_and_shift(call, F.rms_norm(input, normalized_shape, eps=eps), weight, None, normalized_shape)


def _channels(input: Tensor) -> list[int]:
    """Shape of a parameter that belongs to axis 1."""
    return [-1, *[1] * (input.ndim - 2)]


def _group_norm_examples() -> Iterator[Example]:
    yield Example(nn.GroupNorm(2, 4), (torch.randn(5, 4, 3, 2),))
    yield Example(nn.GroupNorm(2, 4), (torch.randn(5, 4),))


@layer(F.group_norm, examples=_group_norm_examples)
def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Use]:
    """Y = x̂ · w + b, channels along axis 1."""
    yield from _scale_and_shift(call, F.group_norm(input, num_groups, eps=eps), weight, bias, _channels(input))


class _Evaluated(nn.Module):
    """A batch norm that has seen data and is in evaluation mode for good."""

    def __init__(self, norm: nn.Module, *shape: int) -> None:
        super().__init__()
        norm(torch.randn(shape) * 2 + 1)
        self.norm = norm.eval()

    def train(self, mode: bool = True) -> _Evaluated:
        return self

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.norm(input)
        return out


def _batch_norm_examples() -> Iterator[Example]:
    yield Example(_Evaluated(nn.BatchNorm1d(4), 6, 4), (torch.randn(5, 4),))
    yield Example(_Evaluated(nn.BatchNorm2d(4), 6, 4, 3, 2), (torch.randn(5, 4, 3, 2),))
    yield Example(_Evaluated(nn.BatchNorm3d(4), 6, 4, 3, 2, 2), (torch.randn(5, 4, 3, 2, 2),))


@layer(F.batch_norm, examples=_batch_norm_examples)
def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Use]:
    """Y = (x − µ)/√(v + ε) · w + b with fixed statistics."""
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch statistics couple the samples")
    normalized = F.batch_norm(input, running_mean, running_var, eps=eps)
    yield from _scale_and_shift(call, normalized, weight, bias, _channels(input))


def _instance_norm_examples() -> Iterator[Example]:
    yield Example(nn.InstanceNorm1d(4, affine=True), (torch.randn(5, 4, 6),))
    yield Example(nn.InstanceNorm2d(4, affine=True), (torch.randn(5, 4, 3, 2),))
    yield Example(
        _Evaluated(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 6, 4, 3, 2), (torch.randn(5, 4, 3, 2),)
    )


@layer(F.instance_norm, examples=_instance_norm_examples)
def instance_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Use]:
    """Y = x̂ · w + b, normalised within each sample and channel."""
    if use_input_stats:
        normalized = F.instance_norm(input, eps=eps)
    else:
        normalized = F.instance_norm(input, running_mean, running_var, use_input_stats=False, eps=eps)
    yield from _scale_and_shift(call, normalized, weight, bias, _channels(input))
