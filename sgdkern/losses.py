"""Unreduced losses: any torch loss as one number a sample."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from cmath import isfinite
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]


def unreduced(loss_fn: Loss) -> Loss:
    """A loss of (outputs, targets) that returns one number a sample, [N], whatever its own reduction.

    A torch loss module or function is asked for ``reduction="none"``. Where that leaves several numbers a sample
    (tokens, pixels, regression targets) they are averaged, or summed if the loss sums, as the loss would over a batch
    of this one sample; positions that ``ignore_index`` drops are not counted. Class weights stay factors of the
    sample's loss.

    Args:
        loss_fn: torch loss module, torch loss function, or any callable that returns one loss a sample, [N].

    Returns:
        The unreduced loss.

    Raises:
        TypeError: if ``loss_fn`` is not callable.

    Example:
        >>> import torch
        >>> unreduced(torch.nn.MSELoss())(torch.zeros(2, 3), torch.ones(2, 3))
        tensor([1., 1.])
    """
    if not callable(loss_fn):
        raise TypeError(
            f"unreduced: loss_fn must be a loss module or a function of (outputs, targets), got "
            f"{type(loss_fn).__name__}."
        )
    if isinstance(loss_fn, nn.Module) and isinstance(getattr(loss_fn, "reduction", None), str):
        module = copy.copy(loss_fn)
        reduction, ignored = module.reduction, getattr(module, "ignore_index", None)
        setattr(module, "reduction", "none")  # noqa: B010 (typed as one of a module's tensors)
        return lambda outputs, targets: _one_a_sample(module(outputs, targets), targets, str(reduction), ignored)
    parameters = _parameters(loss_fn)
    if not isinstance(loss_fn, nn.Module) and "reduction" in parameters:
        reduction = parameters["reduction"].default
        ignored = parameters["ignore_index"].default if "ignore_index" in parameters else None
        function: Callable[..., Tensor] = loss_fn
        return lambda outputs, targets: _one_a_sample(
            function(outputs, targets, reduction="none"), targets, str(reduction), ignored
        )
    return lambda outputs, targets: _checked(loss_fn(outputs, targets))


@dataclass(frozen=True, eq=False)
class _Same:
    """An object compared by identity, and kept alive so that its identity stays its own."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def loss_identity(loss: Any) -> Hashable:
    """What tells one loss from another: a function's code and what it closes over, a partial's parts, else the object.

    A lambda that is written in a loop is the same loss at every turn, as long as it closes over the same things; so is
    one of torch's own loss modules that is made anew with the same settings.

    Args:
        loss: a loss function or module.

    Returns:
        A key for a dictionary.
    """
    if isinstance(loss, functools.partial):
        given = (*loss.args, *(item for pair in sorted(loss.keywords.items()) for item in pair))
        return loss_identity(loss.func), tuple(map(_Same, given))
    if isinstance(loss, types.FunctionType):
        cells = tuple(_Same(cell.cell_contents) for cell in loss.__closure__ or ())
        keywords = tuple((name, _Same(value)) for name, value in (loss.__kwdefaults__ or {}).items())
        return loss.__code__, cells, tuple(map(_Same, loss.__defaults__ or ())), keywords
    if isinstance(loss, nn.Module) and type(loss).__module__ == nn.modules.loss.__name__ and not _is_hooked(loss):
        return type(loss), _settings(loss)
    return _Same(loss)


def _is_hooked(loss: nn.Module) -> bool:
    """Whether a user has changed what a module does."""
    return bool(loss._forward_hooks or loss._forward_pre_hooks or loss._backward_hooks or loss._backward_pre_hooks)


def _settings(loss: nn.Module) -> Hashable:
    """What a torch loss module was made with: plain values as they are, all others (weights, functions) as objects."""
    plain = (bool, int, float, str, type(None))
    own = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
    given = own | loss._parameters | loss._buffers | loss._modules
    return frozenset((name, value if isinstance(value, plain) else _Same(value)) for name, value in given.items())


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a callable; none where it does not tell."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _one_a_sample(losses: Tensor, targets: Any, reduction: str, ignored: int | None) -> Tensor:
    """Losses [N, …] as [N], by the mean or the sum over what belongs to one sample."""
    if losses.ndim <= 1:
        return losses
    flat = losses.flatten(1)
    if reduction != "mean":  # "sum", and "batchmean", which divides by the number of samples alone
        return flat.sum(1)
    if (
        ignored is not None
        and isinstance(targets, Tensor)
        and targets.shape == losses.shape
        and not targets.is_floating_point()
    ):
        return flat.sum(1) / (targets != ignored).flatten(1).sum(1).clamp_min(1)
    return flat.mean(1)


def _checked(losses: Tensor) -> Tensor:
    """The losses of a user's own callable, which must be [N]."""
    if not isinstance(losses, Tensor) or losses.ndim != 1:
        got = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"per_sample_gradients: a loss function of your own must return one loss a sample, [N], got {got}. "
            "Drop its reduction (reduction='none', then average over everything but the first axis)."
        )
    return losses


def all_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite: their sum tells in one pass, and only a sum that overflows asks for each."""
    return isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def check_losses(losses: Any, num_samples: int, numbers: Tensor | None = None) -> Tensor:
    """Losses as they must be: [N], floating point, finite, part of an autograd graph.

    Args:
        losses: what the loss gave.
        num_samples: N.
        numbers: the samples' numbers in the user's batch; None for 0 … N − 1.

    Returns:
        The losses.

    Raises:
        ValueError: if they are something else.
        RuntimeError: if some are not finite.
    """
    if not isinstance(losses, Tensor) or losses.shape != (num_samples,):
        got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"per_sample_gradients: the loss must give one number a sample, [{num_samples}], got {got}. "
            "Is the first axis of every input and target the sample?"
        )
    if not losses.is_floating_point():
        raise ValueError(f"per_sample_gradients: losses must be floating point, got {losses.dtype}. Is it an accuracy?")
    if not losses.requires_grad:
        raise ValueError(
            "per_sample_gradients: losses must be part of an autograd graph, got a tensor without one. "
            "Is something detached, or computed under torch.no_grad, between the parameters and the loss?"
        )
    if not all_finite(losses.detach()):
        bad = (~torch.isfinite(losses.detach())).nonzero()[:, 0].tolist()
        first = [place if numbers is None else int(numbers[place]) for place in bad[:10]]
        raise RuntimeError(
            f"per_sample_gradients: losses must be finite, got {losses.detach()[bad[0]].item()} for {len(bad)} of "
            f"{num_samples} samples "
            f"(first: {first}). Look at these inputs, or lower the learning rate: training may have diverged."
        )
    return losses
