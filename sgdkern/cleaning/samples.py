"""Labels and data sets as `LabelCleaner` takes them, with words for what cannot be used."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor

Array = npt.NDArray[Any]

FEW_PER_CLASS = 10  # below this mean number of samples a class the answer comes with a warning


def checked_labels(y: Any, num_samples: int) -> Array:
    """Return labels as an array [N], after checking that they can be labels.

    Args:
        y: array, tensor or list of labels.
        num_samples: N.

    Returns:
        [N] integers or strings.

    Raises:
        ValueError: if they are not finite, are numbers on a scale, or are not one a sample.
    """
    given: Array = column_or_1d(y.cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise ValueError("LabelCleaner: y contains NaN or infinity. Drop the samples without a label.")
    check_classification_targets(given)
    if len(given) != num_samples:
        raise ValueError(f"LabelCleaner: X and y must have one row a sample, got {num_samples} and {len(given)}.")
    return given


def encoded_labels(given: Array, classes: Array) -> Array:
    """Return the position of each label among the classes.

    Args:
        given: [N] labels.
        classes: [C] sorted labels.

    Returns:
        [N] int64.

    Raises:
        ValueError: if a label is no class, or there is only one class.
    """
    outside = ~np.isin(given, classes)
    if outside.any():
        raise ValueError(
            f"LabelCleaner: every label must be one of the {len(classes)} classes, "
            f"got {given[outside].tolist()[0]!r} at sample {int(np.argmax(outside))}."
        )
    if len(np.unique(given)) < 2:
        raise ValueError(
            f"LabelCleaner: y must have at least 2 classes, got one class, {given.tolist()[0]!r}. "
            "With a single class there is nothing a label could be mistaken for."
        )
    return np.searchsorted(classes, given).astype(np.int64)


def checked_sources(sources: Any, num_samples: int) -> Array | None:
    """Return who gave each label as an array [N], after checking that there is one name a sample.

    Args:
        sources: array or list of names, or None.
        num_samples: N.

    Returns:
        [N], or None.

    Raises:
        ValueError: if there is not one name a sample.
    """
    if sources is None:
        return None
    names = np.asarray(sources)
    if names.shape != (num_samples,):
        raise ValueError(
            f"LabelCleaner: sources must name who gave each of the {num_samples} labels, got {list(names.shape)}."
        )
    return names


def checked_device(device: str | torch.device | None) -> torch.device:
    """Return the device to compute on, after checking that it is there.

    Args:
        device: where to compute; None for the CPU.

    Returns:
        The device.

    Raises:
        ValueError: if it is not there.
    """
    try:
        wanted = torch.device("cpu" if device is None else device)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"LabelCleaner: the device must be there, but {str(device)!r} is not ({reason}). Choose device='cpu'."
        ) from error
    return wanted


def warn_if_few(codes: Array, classes: Array, *, stacklevel: int) -> None:
    """Warn where the samples are too few to say much.

    Args:
        codes: [N] positions among the classes.
        classes: [C] labels.
        stacklevel: frames up to the user's call, as `warnings.warn` counts them.
    """
    alone = [str(name) for name in classes[np.bincount(codes, minlength=len(classes)) == 1]]
    if alone:
        warnings.warn(
            f"LabelCleaner: {'class' if len(alone) == 1 else 'classes'} {', '.join(alone[:5])} with a single "
            "sample: nothing can be said of that label, it is left as it is.",
            UserWarning,
            stacklevel=stacklevel,
        )
    if len(codes) < FEW_PER_CLASS * len(classes):
        warnings.warn(
            f"LabelCleaner: {len(codes)} samples for {len(classes)} classes are too few to tell wrong labels "
            "reliably. Take the ranking as a hint.",
            UserWarning,
            stacklevel=stacklevel,
        )


def collect(dataset: Any) -> tuple[Tensor, Array | None]:
    """Load a torch Dataset into memory.

    Args:
        dataset: items are inputs, or (input, label, ...).

    Returns:
        Inputs [N, ...], and labels [N] where the items have them.

    Raises:
        ValueError: if it is empty.
    """
    items = [dataset[index] for index in range(len(dataset))]
    if not items:
        raise ValueError("LabelCleaner: the Dataset must not be empty, got 0 samples.")
    if isinstance(items[0], (tuple, list)):
        inputs = torch.stack([torch.as_tensor(item[0]) for item in items])
        return inputs, np.asarray([item[1].item() if isinstance(item[1], Tensor) else item[1] for item in items])
    return torch.stack([torch.as_tensor(item) for item in items]), None
