"""classification: margins and predictions, where a model is a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the given label minus the largest other one, z_y - max over c != y of z_c.

    Args:
        logits: [..., N, C] floating point, C at least 2.
        labels: [N] int64 in 0 ... C-1.

    Returns:
        [..., N]; negative where the model prefers another label.

    Reference:
        Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking", Eq. 1.

    Example:
        >>> margins(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([2]))
        tensor([-1.])
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index)
    others = logits.scatter(-1, index, -torch.inf).amax(dim=-1, keepdim=True)
    return (own - others).squeeze(-1)


def margins_and_predictions(
    outputs: Any, targets: Any
) -> tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
    """Margins (logit of the label minus the largest other) and predictions, where the model is a classifier."""
    is_classifier = (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == 2
        and outputs.shape[1] >= 2
        and targets.shape == outputs.shape[:1]
        and not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    )
    if not is_classifier:
        return None, None
    logits, labels = outputs.detach().cpu().double(), targets.cpu().long()
    if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
        return None, None
    predictions = logits.argmax(1).numpy()
    smallest = np.int16 if logits.shape[1] <= np.iinfo(np.int16).max else np.int64
    return margins(logits, labels).numpy().astype(np.float32), predictions.astype(smallest)
