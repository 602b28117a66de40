"""footprint: what a sample costs in memory, weighed on a few; and how many samples a budget runs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgdkern.layers import Scattered
from sgdkern.preserve import preserve
from sgdkern.problem import Problem, leaves, part_of
from sgdkern.recorded_pass import located, recorded
from sgdkern.study import plan_for
from sgdkern.substitutes.plain import TOP_HOOKS

# Samples of the pass that is weighed; what does not grow with their number (masks, positions) counts in full.
WEIGHED_SAMPLES = 3
# The same where samples have parts of their own sizes (packed sequences, routed rows): the largest of these counts.
UNLIKE_SAMPLES = 48
# An output of more bytes than this, for all samples, is worth running them in chunks: allocators give blocks of such a
# size back to the system, and each is then fresh memory, a page fault every 4 KiB, at every measurement (decision 18).
LARGE_OUTPUT = 16 * 2**20
# The largest output of a chunk: what is computed from it mostly finds it in a last-level cache.
CHUNK_OUTPUT = 8 * 2**20
# Footprints remembered a model.
_REMEMBERED = 32


@dataclass(frozen=True)
class Footprint:
    """Bytes a sample.

    Args:
        activations: what autograd saves in a forward pass, and the layers' inputs.
        factors: inputs and output gradients of the layers, in at least single precision: what a gradient matrix keeps.
        largest: the largest layer's output.
        outputs: what the model returns, where that is one tensor.
        by_sample: whether that has a row a sample.
    """

    activations: int
    factors: int
    largest: int
    outputs: int
    by_sample: bool

    @property
    def ordinary(self) -> int:
        """At the peak of an ordinary pass: activations, and a gradient on its way between layers."""
        return self.activations + 2 * self.largest

    @property
    def capture(self) -> int:
        """At the peak of a capture: an ordinary pass, and the gradients of all outputs."""
        return self.ordinary + self.factors


def footprint(problem: Problem, *, num_samples: int = WEIGHED_SAMPLES) -> Footprint:
    """Weigh a forward pass over a few samples; nothing is kept of it.

    Args:
        problem: the model and its batch.
        num_samples: how many; more where samples turn out to differ in size.

    Returns:
        Bytes a sample, rounded up.
    """
    count = min(num_samples, problem.num_samples)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*problem.model.parameters(), *problem.model.buffers())}
    saved: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with preserve(problem.model, seed=problem.seed):
        few = part_of(problem, torch.linspace(0, problem.num_samples - 1, count).round().long())
        hidden = _Hidden(weigh)
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda held: held), hidden:
            seen = recorded(few)
        returned = seen.outputs if isinstance(seen.outputs, Tensor) else torch.empty(few.num_samples, 0)
        by_sample = returned.shape[:1] == (few.num_samples,)
        inputs: dict[Any, int] = {}  # layers share the factors of what they share; scattered rows are put together anew
        outputs = []
        places = located(seen, plan_for(few, seen).layouts)
        for number, (site, where) in enumerate(zip(seen.recorder.sites, places, strict=True)):
            rows = where.padding if isinstance(where, Scattered) else 1.0
            outputs.append(int(rows * site.shape.numel() * seen.dtype.itemsize))
            for value in (*site.args, *site.kwargs.values()):
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in own:
                    weigh(value)
                    width = seen.dtype.itemsize if value.is_floating_point() else value.element_size()
                    sharing = number if isinstance(where, Scattered) else None
                    inputs[sharing, value.data_ptr(), value.shape] = int(rows * value.numel() * width)
    if count < min(UNLIKE_SAMPLES, problem.num_samples) and any(isinstance(where, Scattered) for where in places):
        del seen
        return footprint(problem, num_samples=UNLIKE_SAMPLES)
    activations = sum(saved.values()) + max(hidden.sizes.values(), default=0)
    factors = sum(inputs.values()) + sum(outputs)
    sizes = activations, factors, max(outputs, default=0), returned.nbytes
    activations, factors, largest, returned_bytes = (-(-size // few.num_samples) for size in sizes)
    return Footprint(activations, factors, largest, returned_bytes, by_sample)


class _Hidden(TorchDispatchMode):
    """Sizes of what each checkpointed part of a model computes, and will hold when it is computed again.

    A checkpoint keeps what autograd saves inside it from the hooks of others: they are not on top there. Where torch
    does not tell which are, all that is computed counts, which is too much rather than too little.

    Args:
        hook: the hook that is on top elsewhere.
    """

    def __init__(self, hook: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hook = hook
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and weigh its outputs where another's hook is on top."""
        out = func(*args, **(kwargs or {}))
        top = (None,) if TOP_HOOKS is None else TOP_HOOKS(False)
        if top is not None and top[0] is not self._hook:
            given, made = (
                {
                    leaf.untyped_storage().data_ptr(): leaf.nbytes
                    for leaf in tree_leaves(tree)
                    if isinstance(leaf, Tensor)
                }
                for tree in ((args, kwargs), out)
            )
            size = sum(size for place, size in made.items() if place not in given)
            self.sizes[id(top[0])] = self.sizes.get(id(top[0]), 0) + size
        return out


_known: WeakKeyDictionary[nn.Module, dict[Any, Footprint]] = WeakKeyDictionary()


def pass_size(problem: Problem) -> int | None:
    """Samples that are best run at a time on a CPU, where a chunk and the factors of all take no more than one pass.

    Args:
        problem: the model and its batch; what its samples weigh is remembered by their shapes.

    Returns:
        The size of a chunk; None to run all samples together.
    """
    if problem.seed is not None or any(one.device.type != "cpu" for one in problem.tracked.values()):
        return None  # random masks are drawn chunk by chunk, and would be others than those of all samples together
    shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in leaves(problem.batch))
    training = tuple(module.training for module in problem.model.modules())
    key = shapes, tuple(problem.tracked), problem.loss_key, training
    known = _known.setdefault(problem.model, {})
    if (weight := known.get(key)) is None:
        try:
            weight = known[key] = footprint(problem)
        except Exception:  # a model made for one batch size; what is wrong with it otherwise will show itself
            return None
        while len(known) > _REMEMBERED:
            known.pop(next(iter(known)))
    num_samples = problem.num_samples
    if num_samples * weight.largest <= LARGE_OUTPUT or not weight.by_sample:
        return None
    parts = -(-num_samples * weight.largest // CHUNK_OUTPUT)
    size = max(WEIGHED_SAMPLES, -(-num_samples // parts))
    fits = size * weight.ordinary + num_samples * weight.factors <= num_samples * weight.ordinary
    return size if fits else None


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
