"""preserve: a model comes back from a measurement as it went in, bit for bit, also after an exception."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

# The random number generators are the process's: a measurement in another thread would draw from what this one seeded.
_ONE_AT_A_TIME = threading.RLock()


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
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        mappings = [module._buffers for module in model.modules() if isinstance(module._buffers, dict)]
        buffers = [(mapping, dict(mapping)) for mapping in mappings]  # a script module's own mapping cannot change
        saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # something may be compiled: torch functions inside cannot be seen
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if seed is not None:
            for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)):
                generator.manual_seed(seed)
        try:
            yield
        finally:
            _restore(buffers, saved)


def random_states() -> list[Tensor]:
    """States of the generators of the CPU and of every CUDA device in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


Buffers = dict[str, Tensor | None]


def _restore(buffers: list[tuple[Buffers, Buffers]], saved: list[tuple[Tensor, Tensor]]) -> None:
    """Put back buffers that were written to, replaced, filled or added."""
    for now, known in buffers:
        if now.keys() != known.keys() or any(now[name] is not known[name] for name in known):
            now.clear()
            now.update(known)
    with torch.no_grad():
        for buffer, copy in saved:
            if not torch.equal(buffer, copy):  # batch norm writes without a new version of the tensor
                buffer.data.copy_(copy)  # by .data: graphs that have saved the buffer do not mind
