"""footprint: what a sample costs in memory, weighed on a few; and how many samples a budget runs at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.preserve import preserve
from sgdkern.problem import Problem, part_of
from sgdkern.recorded_pass import recorded

# Samples of the pass that is weighed; what does not grow with their number (masks, positions) counts in full.
WEIGHED_SAMPLES = 3


@dataclass(frozen=True)
class Footprint:
    """Bytes a sample.

    Args:
        activations: what autograd saves in a forward pass, and the layers' inputs.
        factors: inputs and output gradients of the layers, in at least single precision: what a gradient matrix keeps.
        largest: the largest layer's output.
        outputs: what the model returns, where that is one tensor.
    """

    activations: int
    factors: int
    largest: int
    outputs: int

    @property
    def capture(self) -> int:
        """At the peak of a capture: activations, the gradients of all outputs, and one on its way between layers."""
        return self.activations + self.factors + 2 * self.largest


def footprint(problem: Problem) -> Footprint:
    """Weigh a forward pass over a few samples; nothing is kept of it.

    Args:
        problem: the model and its batch.

    Returns:
        Bytes a sample, rounded up.
    """
    few = part_of(problem, torch.arange(min(WEIGHED_SAMPLES, problem.num_samples)))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*problem.model.parameters(), *problem.model.buffers())}
    saved: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with preserve(problem.model, seed=problem.seed), torch.autograd.graph.saved_tensors_hooks(weigh, lambda held: held):
        seen = recorded(few)
        sites = seen.recorder.sites
        inputs: dict[int, int] = {}
        for site in sites:
            for value in (*site.args, *site.kwargs.values()):
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in own:
                    weigh(value)
                    inputs[value.untyped_storage().data_ptr()] = value.numel() * _single_bytes(value)
        outputs = [site.shape.numel() * max(4, _largest(site.args)) for site in sites]
    returned = seen.outputs.nbytes if isinstance(seen.outputs, Tensor) else 0
    whole = sum(saved.values()), sum(inputs.values()) + sum(outputs), max(outputs, default=0), returned
    return Footprint(*(-(-size // few.num_samples) for size in whole))


def _single_bytes(tensor: Tensor) -> int:
    """Bytes of an element as factors keep it: half precision as single."""
    return max(4, tensor.element_size()) if tensor.is_floating_point() else tensor.element_size()


def _largest(values: tuple[object, ...]) -> int:
    """Bytes of an element of the most precise of a call's tensors."""
    return max(
        (value.element_size() for value in values if isinstance(value, Tensor) and value.is_floating_point()), default=4
    )


def samples_at_once(problem: Problem, budget: int) -> int:
    """How many samples to capture at a time so that a gradient matrix of all is built within a budget.

    Args:
        problem: the model and its batch.
        budget: bytes for the factors and outputs of all samples, which are kept, and for one chunk's pass.

    Returns:
        The chunk size, 1 … N.

    Raises:
        ValueError: if the budget does not hold the factors and one sample's pass.
    """
    weight = footprint(problem)
    kept = problem.num_samples * (weight.factors + 2 * weight.outputs)  # outputs in parts, and put together
    if budget < kept + weight.capture:
        raise ValueError(
            f"per_sample_gradients: memory_budget must hold the factors and outputs of all samples, {kept:,} bytes, "
            f"and one sample's pass, {weight.capture:,}, got {budget:,}. Raise it, restrict params=, or take what "
            "needs no factors of all samples: gram_matrix(memory_budget=) or StreamingGradients."
        )
    return max(1, min(problem.num_samples, (budget - kept) // max(1, weight.capture)))
