"""preserve: a model comes back from a measurement as it went in, bit for bit, also after an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def preserve(model: nn.Module, *, seed: int | None = None) -> Iterator[None]:
    """Leave no trace on a model: buffers and random number generators are put back; compiled code runs eagerly.

    Nothing is ever registered on the model and ``.grad`` is never written, so parameters, gradients, flags and hooks
    need no care.

    Args:
        model: the model to protect.
        seed: seed of the random numbers inside; the generators' own states where it is None.

    Yields:
        None.
    """
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    saved = [(buffer, buffer.detach().clone()) for _, _, buffer in buffers]
    devices = sorted({
        p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None
    })
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if any(module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(
                torch.compiler.set_stance("force_eager")
            )  # torch functions inside compiled code cannot be seen
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            _restore(buffers, saved)


def _restore(buffers: list[tuple[nn.Module, str, Tensor]], saved: list[tuple[Tensor, Tensor]]) -> None:
    """Put back buffers that were written to or replaced; batch norm writes without a new version of the tensor."""
    with torch.no_grad():
        for (module, name, buffer), (_, copy) in zip(buffers, saved, strict=True):
            if not torch.equal(buffer, copy):
                buffer.data.copy_(copy)  # by .data: graphs that have saved the buffer do not mind
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
