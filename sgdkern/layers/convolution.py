"""Convolutions and their transposes, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdkern.factors import Patches
from sgdkern.layers import Call, Example, Use, layer

Size = int | Sequence[int]


def _numbers(size: Size, dims: int) -> tuple[int, ...]:
    """A number an axis."""
    return (size,) * dims if isinstance(size, int) else tuple(size) * (dims if len(size) == 1 else 1)


def _padded(input: Tensor, padding: Size | str, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """The input with the zeros that a convolution would add around it."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        sides = [(size // 2, size - size // 2) for size in total]
    else:
        sides = [(size, size) for size in _numbers(padding, len(kernel))]
    if not any(low or high for low, high in sides):
        return input
    return F.pad(input, [side for low_high in reversed(sides) for side in low_high])


def _examples() -> Iterator[Example]:
    for dims, conv in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1):
        size = (7, 6, 5)[:dims]
        yield Example(conv(4, 6, 3), (torch.randn(5, 4, *size),))
        yield Example(conv(4, 6, 3, stride=2, padding=1, bias=False), (torch.randn(5, 4, *size),))
        yield Example(conv(4, 6, 2, padding="same", dilation=2), (torch.randn(5, 4, *size),))
        yield Example(conv(4, 6, 3, padding=1, padding_mode="circular", groups=2), (torch.randn(5, 4, *size),))
    yield Example(nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), groups=4), (torch.randn(5, 4, 6, 5),))


@layer(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, examples=_examples)
def convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Iterator[Use]:
    """Y = conv(x, W) + b: patches of x meet the gradient at every position."""
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    if call.tracked(weight):
        stride, dilation = _numbers(stride, dims), _numbers(dilation, dims)
        inputs = call.samples(_padded(input, padding, kernel, dilation), 1 + dims)
        yield Use(
            Patches(inputs, call.samples(call.output_grad, 1 + dims), kernel, stride, dilation, groups), (weight,)
        )
    if bias is not None and call.tracked(bias):
        yield _bias(call, bias, dims)


def _bias(call: Call, bias: Tensor, dims: int) -> Use:
    """The bias receives the sum over all positions."""
    use = call.reduced(call.output_grad, bias.view(-1, *[1] * dims))
    return Use(use.factors, (bias,))


def _transposed_examples() -> Iterator[Example]:
    for dims, conv in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1):
        size = (5, 4, 3)[:dims]
        yield Example(conv(4, 6, 3), (torch.randn(5, 4, *size),))
        yield Example(conv(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (torch.randn(5, 4, *size),))
        yield Example(conv(4, 6, 2, dilation=2, bias=False), (torch.randn(5, 4, *size),))


@layer(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, examples=_transposed_examples)
def transposed_convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Iterator[Use]:
    """Y = convᵀ(x, W) + b: the convolution's factors with inputs and output gradients exchanged."""
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    if call.tracked(weight):
        stride, dilation = _numbers(stride, dims), _numbers(dilation, dims)
        grads = call.samples(_padded(call.output_grad, padding, kernel, dilation), 1 + dims)
        yield Use(Patches(grads, call.samples(input, 1 + dims), kernel, stride, dilation, groups), (weight,))
    if bias is not None and call.tracked(bias):
        yield _bias(call, bias, dims)
