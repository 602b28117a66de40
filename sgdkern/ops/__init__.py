"""The kernel boundary: operations with a reference in plain PyTorch and, where it is faster, a compiled twin.

In reading order:
    gram: the Gram matrix of per-sample gradients from the factors of layers that are used once a sample.
    minibatch_norms: squared norms of minibatches' summed gradients, the Gram matrix's blocks without the matrix.
    matvec, rmatvec: what a linear layer adds to G v, and what Gᵀ w has of it.
    gram_positions: the same as gram, for a layer that is used at several positions, by pairs of these.
    patch_gradients: explicit gradients of a layer that is used at several positions, a convolution.
    patch_gram: the same from such gradients, a convolution's or a sequence layer's, which are never stored whole.
    gram_matvec, patch_gram_matvec: the diagonals of both, and their products with a few vectors, without either.
    linear_gram_matvec: the same for a layer with few outputs, by products with its factors.
    max_places: where the largest number of each window is, most of what max pooling costs before a network's gradients.
    narrow_linear: the outputs of a linear layer with few of them, most of what a small perceptron costs before them.
    thin_product: a large matrix times a block of vectors, what an iteration on a stored Gram matrix is made of.
"""

from sgdkern.ops.gram import gram
from sgdkern.ops.gram_matvec import gram_matvec
from sgdkern.ops.gram_positions import gram_positions
from sgdkern.ops.linear_gram_matvec import linear_gram_matvec
from sgdkern.ops.matvec import matvec
from sgdkern.ops.max_places import max_places
from sgdkern.ops.minibatch_norms import minibatch_norms
from sgdkern.ops.narrow_linear import narrow_linear
from sgdkern.ops.patch_gradients import patch_gradients
from sgdkern.ops.patch_gram import patch_gram
from sgdkern.ops.patch_gram_matvec import patch_gram_matvec
from sgdkern.ops.registry import LIBRARIES, OPS, Cost, Op
from sgdkern.ops.rmatvec import rmatvec
from sgdkern.ops.thin_product import thin_product

__all__ = [
    "LIBRARIES",
    "OPS",
    "Cost",
    "Op",
    "gram",
    "gram_matvec",
    "gram_positions",
    "linear_gram_matvec",
    "matvec",
    "max_places",
    "minibatch_norms",
    "narrow_linear",
    "patch_gradients",
    "patch_gram",
    "patch_gram_matvec",
    "rmatvec",
    "thin_product",
]
