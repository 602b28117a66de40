"""substitutes: functions that a recorded pass runs instead of torch's, where those are slow on the CPU.

The recorded pass runs a user's model. What it takes besides gradients counts in every measurement, and some of torch's
functions are several times slower than they need to be. A substitute takes the same arguments, gives the same values,
to the bit or within rounding, and the same gradients and errors; whatever it is not faster at, it leaves to torch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from sgdkern.substitutes.classes import cross_entropy
from sgdkern.substitutes.narrow import linear
from sgdkern.substitutes.pooling import max_pool2d

SUBSTITUTES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.cross_entropy: cross_entropy,
    F.linear: linear,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
}

__all__ = ["SUBSTITUTES", "cross_entropy", "linear", "max_pool2d"]
