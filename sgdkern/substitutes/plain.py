"""plain: tensors that are nothing but numbers on the CPU, whose functions nobody else has changed or looks into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.ops import Op

# Torch's own, and private: which hooks on saved tensors are on top, with or without those that may be left out.
TOP_HOOKS: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def is_plain(*tensors: Tensor) -> bool:
    """Whether no subclass, device, mode, autocast or transform changes what a function of these tensors is.

    Args:
        tensors: any.

    Returns:
        The answer.
    """
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
        if not plain or tensor.layout != torch.strided:
            return False
    if are_modes_active() or torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    return torch.autograd.forward_ad._current_level < 0


def takes(op: Op[Any], *arguments: Any) -> bool:
    """Whether an operation is compiled for the CPU and takes these arguments.

    Args:
        op: the operation.
        arguments: of a call.

    Returns:
        The answer; what is wrong with other arguments torch says best, or knows what to do with.
    """
    if not op.is_compiled("cpu"):
        return False
    try:
        op.check(*arguments)
    except (ValueError, NotImplementedError):
        return False
    return True


def are_modes_active() -> bool:
    """Whether somebody sees, and may change, every function that is called; a mode that is just asked does not count.

    So a step that `watch` follows, by a mode, is the user's to the bit.

    Returns:
        The answer.
    """
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


def saves_are_hooked() -> bool:
    """Whether somebody keeps what is saved for the backward pass, as checkpoints do, and compares it.

    Returns:
        The answer.
    """
    return TOP_HOOKS is None or TOP_HOOKS(True) is not None
