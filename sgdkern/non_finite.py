"""Losses that are not finite: an error that names the step, the layer and the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.losses import Loss, unreduced
from sgdkern.problem import forward

_SHOWN = 5


class NonFiniteError(RuntimeError):
    """A loss is NaN or infinite.

    Attributes:
        step: Where it was found.
        layer: The first module in whose parameters or output it shows; empty where only the loss shows it.
        samples: Indices of the samples whose loss is not finite.
    """

    def __init__(self, loss: float, *, step: int, layer: str, samples: tuple[int, ...]) -> None:
        self.step, self.layer, self.samples = step, layer, samples
        more = f" … ({len(samples)} in all)" if len(samples) > _SHOWN else ""
        where = f" It shows first in layer {layer!r}." if layer else ""
        super().__init__(
            f"Probe: losses must be finite, got {loss:g} at step {step} for samples "
            f"{', '.join(map(str, samples[:_SHOWN]))}{more}.{where} "
            "Lower the learning rate, or look at these samples' inputs and targets."
        )


def non_finite(step: int, model: nn.Module, loss_fn: Loss, inputs: Any, targets: Any) -> NonFiniteError | None:
    """Look for losses that are not finite, and for the layer that they come from.

    Args:
        step: For the message.
        model: The network; nothing of it is changed.
        loss_fn: As for ``sgdkern.per_sample_gradients``.
        inputs: The samples.
        targets: Their targets.

    Returns:
        The error to raise; None where every loss is finite.
    """
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    found: list[str] = []
    handles = [
        module.register_forward_hook(_look(name, found))
        for name, module in model.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            losses = unreduced(loss_fn)(forward(model, inputs), targets)
    finally:
        for handle in handles:
            handle.remove()
    samples = tuple((~losses.isfinite()).nonzero().flatten().tolist())
    if not samples:
        return None
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    layer = broken[0].rpartition(".")[0] or broken[0] if broken else next(iter(found), "")
    return NonFiniteError(losses[samples[0]].item(), step=step, layer=layer, samples=samples)


def _look(name: str, found: list[str]) -> Any:
    """A hook that notes the module's name where its output is not finite."""

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            found.append(name)

    return hook
