"""The floating point operations that a quantity cannot do without, counted from the layers' shapes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sgdkern.benchmark.timing import seconds_of
from sgdkern.benchmark.workloads import Problem

LayerShape = tuple[int, int, int, bool]


def layer_shapes(problem: Problem) -> list[LayerShape]:
    """Run one sample forward and look at its matrix products; those of attention are left out.

    Args:
        problem: The model and its inputs.

    Returns:
        For every linear layer and convolution positions T, inputs I, outputs O, and whether its inputs' gradient is
        needed.
    """
    shapes: list[LayerShape] = []

    def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
        outputs, *rest = module.weight.shape
        shapes.append((output.numel() // outputs, math.prod(rest), outputs, args[0].requires_grad))

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(note) for m in problem.model.modules() if isinstance(m, kinds)]
    try:
        problem.model(problem.first(1).inputs)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def useful_flops(problem: Problem, quantity: str) -> int | None:
    """Count the multiplications and additions that no method can leave out.

    Forward 2NTIO a layer, the same for the inputs' gradient and for the parameters'. K takes N²T²(I+O) by products of
    positions or N²IO + 2NTIO from explicit gradients, whichever is less: half of a symmetric product.

    Args:
        problem: The model and its samples.
        quantity: "gradient" (forward and backward), "K" or "order parameters" (Gᵀ1 and G ḡ).

    Returns:
        The operations; None for a quantity that is not counted.
    """
    if quantity not in ("gradient", "K", "order parameters"):
        return None
    num_samples, total = problem.num_samples, 0
    for positions, inputs, outputs, needs_input_grad in layer_shapes(problem):
        once = 2 * num_samples * positions * inputs * outputs
        total += once * (2 if needs_input_grad else 1)
        pairs = num_samples**2 * positions**2 * (inputs + outputs)
        explicit = num_samples**2 * inputs * outputs + once
        total += {"gradient": once, "K": min(pairs, explicit), "order parameters": 2 * once}[quantity]
    return total


CEILING_SIZE = 2048
CEILING_FLOPS = 2 * CEILING_SIZE**3


def ceiling_product(dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """Make the square matrix product whose rate is the ceiling, in the type that sums are kept in.

    Args:
        dtype: The operands' type; bfloat16 and float16 are summed in float32.

    Returns:
        What multiplies them: `CEILING_FLOPS` operations a call.
    """
    wide = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(CEILING_SIZE, CEILING_SIZE, generator=generator).to(wide) for _ in range(2))
    return lambda: torch.mm(a, b)


def ceiling_gflops(dtype: torch.dtype = torch.float32) -> float:
    """Measure the best rate of a square matrix product in the type that sums are kept in.

    Args:
        dtype: The operands' type; bfloat16 and float16 are summed in float32.

    Returns:
        10^9 operations a second.
    """
    product = ceiling_product(dtype)
    return 1e-9 * CEILING_FLOPS / min(seconds_of(product) for _ in range(4))
