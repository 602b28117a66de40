"""Factors of several sets of samples put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgdkern.factors.dense import Dense
from sgdkern.factors.explicit import Explicit
from sgdkern.factors.lookup import Lookup
from sgdkern.factors.patches import Patches
from sgdkern.factors.protocol import Factors


def stack(parts: Sequence[Factors], shared: dict[Any, Tensor] | None = None) -> Factors:
    """Several sets of samples as one; shorter sequences are padded with positions that have no gradient.

    Args:
        parts: factors of a kind.
        shared: what has been put together before: layers with the same inputs go on sharing them.

    Returns:
        The factors of all samples.

    Raises:
        TypeError: if the factors are of a kind that is not of this room.
    """
    first = parts[0]
    shared = {} if shared is None else shared
    if isinstance(first, Explicit):
        return Explicit(torch.cat([part.output_grads for part in parts if isinstance(part, Explicit)]))
    if isinstance(first, Dense):
        dense = [part for part in parts if isinstance(part, Dense)]
        inputs = _padded([part.inputs for part in dense], shared)
        return dataclasses.replace(
            first, inputs=inputs, output_grads=_padded([part.output_grads for part in dense], shared)
        )
    if isinstance(first, Lookup):
        lookups = [part for part in parts if isinstance(part, Lookup)]
        indices = _padded([part.indices for part in lookups], shared, value=-1)
        return dataclasses.replace(
            first, indices=indices, output_grads=_padded([part.output_grads for part in lookups], shared)
        )
    if isinstance(first, Patches):
        patches = [part for part in parts if isinstance(part, Patches)]
        return dataclasses.replace(
            first,
            inputs=_joined([part.inputs for part in patches], shared),
            output_grads=_joined([part.output_grads for part in patches], shared),
        )
    raise TypeError(f"stack: factors must be of a kind of this file, got {type(first).__name__}.")


def can_stack(parts: Sequence[Factors]) -> bool:
    """Whether `stack` holds: the same kind, the same columns, and for patches the same spatial sizes."""
    first = parts[0]
    same = all(type(part) is type(first) and part.sizes == first.sizes for part in parts)
    if same and isinstance(first, Patches):
        key = (first.inputs.shape[1:], first.output_grads.shape[1:], first.geometry)
        return all(
            isinstance(part, Patches) and (part.inputs.shape[1:], part.output_grads.shape[1:], part.geometry) == key
            for part in parts
        )
    return same


def _padded(tensors: Sequence[Tensor], shared: dict[Any, Tensor], value: int = 0) -> Tensor:
    """Tensors [N_i, T_i, …] one after the other, padded to the longest T."""
    longest = max(tensor.shape[1] for tensor in tensors)
    if all(tensor.shape[1] == longest for tensor in tensors):
        return _joined(tensors, shared)
    padded = []
    for tensor in tensors:
        full = tensor.new_full((tensor.shape[0], longest, *tensor.shape[2:]), value)
        full[:, : tensor.shape[1]] = tensor
        padded.append(full)
    return torch.cat(padded)


def _joined(tensors: Sequence[Tensor], shared: dict[Any, Tensor]) -> Tensor:
    """Tensors one after the other along the samples; the same tensors give the same one again."""
    key = tuple((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
    if key not in shared:
        shared[key] = torch.cat(list(tensors))
    return shared[key]
