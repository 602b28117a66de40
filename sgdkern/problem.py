"""Problem: a model, the parameters looked at, and how a batch becomes losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any


@dataclass(frozen=True)
class Problem:
    """A model, its parameters of interest, and how a batch becomes losses.

    Args:
        model: the model.
        tracked: name → parameter of interest, in named_parameters order.
        losses: (model, batch) → losses [N] and the outputs.
        batch: nested tensors whose first axis is the sample.
        num_samples: N.
        seed: seed of random layers, None where there are none.
        loss_key: what tells one loss function from another.
        numbers: the samples' numbers in the user's batch; None for 0 … N − 1.
    """

    model: nn.Module
    tracked: Mapping[str, nn.Parameter]
    losses: Callable[[nn.Module, Batch], tuple[Tensor, Any]]
    batch: Batch
    num_samples: int
    seed: int | None = None
    loss_key: Any = None
    numbers: Tensor | None = None


def taken(value: Any, indices: Tensor) -> Any:
    """Some samples of a nested batch."""
    if isinstance(value, Tensor):
        return value[indices.to(value.device)] if value.ndim else value
    if isinstance(value, Mapping):
        items = {key: taken(item, indices) for key, item in value.items()}
        return items if type(value) is dict else _like_mapping(value, items)
    if isinstance(value, tuple | list):
        parts = [taken(item, indices) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _like_mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same type where its constructor takes one (Hugging Face's batches do)."""
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def leaves(value: Any) -> Iterable[Tensor]:
    """Tensors of a nested batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)


def count_samples(batch: Batch) -> int:
    """N: the length of the first axis, which every tensor of the batch must share."""
    lengths = {tensor.shape[0] for tensor in leaves(batch) if tensor.ndim}
    if not lengths:
        raise TypeError(
            "per_sample_gradients: inputs and targets must hold tensors, got none. Make tensors of arrays by "
            "torch.as_tensor."
        )
    if len(lengths) != 1:
        raise ValueError(
            f"per_sample_gradients: the first axis of all inputs and targets must be the sample, got lengths "
            f"{sorted(lengths)}. "
            "Pass constants to the model by a closure instead."
        )
    (num_samples,) = lengths
    if num_samples == 0:
        raise ValueError("per_sample_gradients: at least one sample is needed, got an empty batch.")
    return num_samples


def part_of(problem: Problem, indices: Tensor) -> Problem:
    """The problem for some of its samples."""
    numbers = indices if problem.numbers is None else problem.numbers[indices]
    batch = taken(problem.batch, indices)
    return dataclasses.replace(problem, batch=batch, num_samples=len(indices), numbers=numbers)


def slices_of(tracked: Mapping[str, Tensor]) -> dict[str, slice]:
    """Flat columns of the parameters, in order."""
    slices, start = {}, 0
    for name, parameter in tracked.items():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return slices


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call a model: a tuple is its positional arguments, a mapping its keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def dense_gradient(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """What autograd gave for a parameter as a flat dense tensor, zeros where it gave nothing."""
    if gradient is None:
        return torch.zeros_like(parameter).flatten()
    return (gradient.to_dense() if gradient.is_sparse else gradient).detach().flatten()


def at_least_single(tensor: Tensor) -> Tensor:
    """Half precision as float32."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
