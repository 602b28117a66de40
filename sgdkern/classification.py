"""classification: margins and predictions, where a model is a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


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
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    predictions = logits.argmax(1).numpy()
    smallest = np.int16 if logits.shape[1] <= np.iinfo(np.int16).max else np.int64
    return (own - others).numpy().astype(np.float32), predictions.astype(smallest)
