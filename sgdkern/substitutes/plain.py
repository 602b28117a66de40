"""plain: tensors that are nothing but numbers on the CPU, whose functions nobody else has changed or looks into."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_plain(*tensors: Tensor) -> bool:
    """Whether neither a subclass, a device, autocast nor a transform changes what a function of these tensors is.

    Args:
        tensors: any.

    Returns:
        The answer.
    """
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
        if not plain or tensor.layout != torch.strided:
            return False
    if torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    return torch.autograd.forward_ad._current_level < 0


def saves_are_hooked() -> bool:
    """Whether somebody keeps what is saved for the backward pass, as checkpoints do, and compares it.

    Returns:
        The answer.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
