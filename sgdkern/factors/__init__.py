"""Factors: the one data format, per-sample gradients as sums of outer products that are never stored.

After ``inputs`` [N, T, I] and ``output_grads`` [N, T, O] the gradient of sample n is Σ_t b_nt a_ntᵀ, [O, I], whatever
the layer was. Four kinds differ only in how ``inputs`` is held: the matrix itself (`Dense`), a layer's own input whose
patches are formed where they are used (`Patches`), indices in place of one-hot rows (`Lookup`), and nothing at all
(`Explicit`: T = I = 1, the rows are the gradients).

A *piece* is one parameter's share of the columns; `Dense` has up to two (weight and bias, the constant column of the
inputs). Everything here is linear algebra on the local columns [p]; which parameters they belong to is
`gradient_matrix`'s business.
"""

from sgdkern.factors.dense import Dense
from sgdkern.factors.explicit import Explicit
from sgdkern.factors.lookup import Lookup
from sgdkern.factors.patches import Patches
from sgdkern.factors.protocol import CHUNK_BYTES, Factors, chunks, gram_products
from sgdkern.factors.stacking import can_stack, stack

__all__ = [
    "CHUNK_BYTES",
    "Dense",
    "Explicit",
    "Factors",
    "Lookup",
    "Patches",
    "can_stack",
    "chunks",
    "gram_products",
    "stack",
]
