"""classes: cross entropies of few classes, several times as fast as torch's on the CPU.

Torch runs a softmax along the classes of one sample after the other; where these do not fill a vector, it takes them
one by one. The same function along columns, of all samples at once, fills its vectors with samples (decision 77).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgdkern.substitutes.plain import is_plain, saves_are_hooked

# Fewer classes than float32 numbers in the widest vector, and numbers from which on the other way is faster.
FEWER_CLASSES, FEWEST_NUMBERS = 16, 2**13


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` with the same values within rounding; faster for few classes on the CPU.

    Args:
        input: logits [N, C]; with other axes, 16 classes or more, or few samples, torch is left to it.
        target: classes [N]; probabilities are left to torch.
        weight: of the classes.
        size_average: None to be faster.
        ignore_index: a class whose losses are zero.
        reduce: None to be faster.
        reduction: "none" to be faster: a loss a sample is what a measurement asks for.
        label_smoothing: share of the loss of all classes alike.

    Returns:
        Losses, [N], or what the reduction makes of them.
    """
    if size_average is None and reduce is None and reduction == "none" and _is_faster(input, target, weight):
        losses = F.cross_entropy(
            input.T[None], target[None], weight, None, ignore_index, None, reduction, label_smoothing
        )
        return losses[0]
    return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)


def _is_faster(logits: Any, classes: Any, weight: Any) -> bool:
    """Whether there are few classes of many samples; hooks on saved tensors expect torch's own."""
    if not (isinstance(logits, Tensor) and isinstance(classes, Tensor) and logits.ndim == 2):
        return False
    if logits.shape[1] >= FEWER_CLASSES or logits.numel() < FEWEST_NUMBERS or classes.shape != logits.shape[:1]:
        return False
    kinds = logits.dtype in (torch.float32, torch.float64) and classes.dtype == torch.int64
    if not kinds or not is_plain(logits, classes) or saves_are_hooked():
        return False
    if weight is None:
        return True
    fits = isinstance(weight, Tensor) and weight.shape == logits.shape[1:] and weight.dtype == logits.dtype
    return fits and is_plain(weight)
