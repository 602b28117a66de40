"""Partition: which group each sample belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

# Integers [N], or {name: boolean mask [N]}; tensors, arrays or lists.
Groups: TypeAlias = "Tensor | Any | Mapping[str, Any]"


def partition(groups: Groups, num_samples: int) -> tuple[tuple[str, ...], Tensor]:
    """Names of the groups and, for each sample, the number of its group.

    Args:
        groups: Integers [N] or {name: boolean mask [N]}.
        num_samples: N.

    Returns:
        The names, in ascending order of the integers or in the mapping's order, and int64 [N].

    Raises:
        TypeError: If the labels are not integers or a mask is not boolean.
        ValueError: If the length is not N, a group is empty, two groups overlap or a sample belongs to none.
    """
    if not isinstance(groups, Mapping):
        try:
            labels = torch.as_tensor(groups).cpu()
        except (TypeError, ValueError) as error:
            raise TypeError(
                "partition: groups must be integers or {name: mask}, got something else. Number the groups, or make "
                "a mask of each: {name: labels == name}."
            ) from error
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"partition: groups must be integers or {{name: mask}}, got {labels.dtype}. Cast them.")
        if labels.shape != (num_samples,):
            raise ValueError(
                f"partition: groups must hold one integer for each of the {num_samples} samples, got shape "
                f"{list(labels.shape)}. Were they made for another data set?"
            )
        values, members = torch.unique(labels.long(), return_inverse=True)
        return tuple(str(value) for value in values.tolist()), members
    masks = {str(name): torch.as_tensor(mask).cpu() for name, mask in groups.items()}
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise TypeError(f"partition: the mask of group {name!r} must be boolean, got {mask.dtype}. Pass mask > 0.")
        if mask.shape != (num_samples,):
            raise ValueError(
                f"partition: the mask of group {name!r} must have shape [{num_samples}], got {list(mask.shape)}. "
                "Was it made for another data set?"
            )
        if not mask.any():
            raise ValueError(f"partition: every group needs a sample, got none in {name!r}. Leave that group out.")
    stacked = torch.stack(list(masks.values())) if masks else torch.zeros(1, num_samples, dtype=torch.bool)
    memberships = stacked.sum(0)
    if not bool((memberships == 1).all()):
        sample = int((memberships != 1).nonzero()[0])
        raise ValueError(
            f"partition: every sample must belong to exactly one group, got sample {sample} in "
            f"{int(memberships[sample])}. Give the remaining samples a group of their own, or make groups disjoint."
        )
    return tuple(masks), stacked.int().argmax(0)
