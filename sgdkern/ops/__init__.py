"""The kernel boundary: operations with a reference in plain PyTorch and, where it is faster, a compiled twin.

In reading order:
    gram: the Gram matrix of per-sample gradients from the layers' factors.
"""

from sgdkern.ops.gram import gram
from sgdkern.ops.registry import LIBRARIES, OPS, Cost, Op

__all__ = ["LIBRARIES", "OPS", "Cost", "Op", "gram"]
