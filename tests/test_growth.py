"""What the library itself does grows with the number of layers, not with its square: counted in Python's own steps."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients
from sgdkern.gram_pass import gram_matrix

FEW, MANY = 12, 48


class Deep(nn.Module):
    """Layers of a kind one after the other, or one of them called as often."""

    def __init__(self, kind: Callable[[], nn.Module], depth: int, *, shared: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([kind()] * depth if shared else [kind() for _ in range(depth)])

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = inputs + layer(inputs) / len(self.layers)
        return inputs


def steps(work: Callable[[], object]) -> int:
    """Instructions of Python that run in this package's own functions."""
    count = 0

    def trace(frame: types.FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("sgdkern."):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def loss(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.sin().sum(1)


def everything(model: nn.Module, inputs: Tensor) -> None:
    G = per_sample_gradients(model, loss, inputs, inputs)
    assert G.layers
    assert G.squared_norms().shape == G.gram().diagonal().shape


def gram(model: nn.Module, inputs: Tensor) -> None:
    gram_matrix(model, loss, inputs, inputs)


@pytest.mark.parametrize("kind", [lambda: nn.LayerNorm(4), lambda: nn.Linear(4, 4)], ids=["norms", "linear"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("work", [gram, everything])
def test_four_times_as_many_layers_take_four_times_the_steps(
    work: Callable[[nn.Module, Tensor], None], kind: Callable[[], nn.Module], shared: bool
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 4)
    few, many = (steps(lambda depth=depth: work(Deep(kind, depth, shared=shared), inputs)) for depth in (FEW, MANY))
    assert many / few < 1.03 * MANY / FEW
