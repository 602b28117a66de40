"""gram_routes: the ways from a layer's factors to its Gram matrix, and which one costs least."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgdkern import ops
from sgdkern.factors import Dense, Factors, Lookup, Patches, chunks

# Where an operation has no compiled twin, its reference holds explicit rows: of as many outputs at a time as fit here.
SLICE_BYTES = 128 * 2**20


def add_gram(gram: Tensor, factors: Factors) -> None:
    """K += the Gram matrix of one set of factors, in place.

    With T positions, I inputs and O outputs a pair of samples costs T²(I + O) by products of positions and I·O from
    explicit gradients, which cost T·I·O more a sample: shared among N partners, next to nothing.

    Args:
        gram: K, [N, N].
        factors: the factors.
    """
    if isinstance(factors, Lookup):
        gram += factors.gram()
        return
    if isinstance(factors, Patches) and factors.groups == 1:
        out_features, in_features = factors.weight_shape[0], factors.sizes[0] // factors.weight_shape[0]
        positions = factors.output_grads[0, :, 0].numel()
        if _pairs_are_cheaper(factors.num_samples, positions, in_features, out_features):
            factors = factors.unfolded()
    if isinstance(factors, Dense):
        sizes = factors.num_positions, factors.inputs.shape[2], factors.output_grads.shape[2]
        if _pairs_are_cheaper(factors.num_samples, *sizes):
            _add_gram_of_positions(gram, factors)
            return
    for part in factors.slices(SLICE_BYTES):
        _add_gram_of_gradients(gram, part)


def _pairs_are_cheaper(num_samples: int, positions: int, in_features: int, out_features: int) -> bool:
    """Whether a layer's Gram matrix costs less by products of positions than from explicit gradients."""
    return positions**2 * (in_features + out_features) < in_features * out_features * (1 + positions / num_samples)


def _add_gram_of_gradients(gram: Tensor, factors: Factors) -> None:
    """K += R Rᵀ with explicit gradients R, which are stored only where there is no other way."""
    planar = isinstance(factors, Patches) and factors.groups == 1 and factors.inputs.shape[1] == 1
    if isinstance(factors, Patches) and planar and len(factors.kernel) <= 2:
        inputs, grads = factors.inputs[:, 0], factors.output_grads[:, 0]
        kernel, stride, dilation = list(factors.kernel), list(factors.stride), list(factors.dilation)
        if len(kernel) == 1:  # one row
            inputs, grads = inputs[:, :, None], grads[:, :, None]
            kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        gram += ops.patch_gram(inputs, grads, kernel, stride, dilation)
    elif isinstance(factors, Dense):  # a kernel of one over a column of positions
        inputs, grads = (tensor.transpose(1, 2)[..., None] for tensor in (factors.inputs, factors.output_grads))
        gram += ops.patch_gram(inputs, grads, [1, 1], [1, 1], [1, 1])
        if factors.bias:
            _add_products(gram, factors.output_grads.sum(1))
    else:
        _add_products(gram, factors.rows(0, factors.num_samples))


def _add_products(gram: Tensor, rows: Tensor) -> None:
    """K += R Rᵀ in four bands of the lower triangle, 5/8 of the full product's work; mirrored."""
    band = max(1, -(-len(rows) // 4))
    for start in range(0, len(rows), band):
        stop = min(start + band, len(rows))
        block = rows[start:stop] @ rows[:stop].T
        gram[start:stop, :stop] += block
        gram[:start, start:stop] += block[:, :start].T


def _add_gram_of_positions(gram: Tensor, factors: Dense) -> None:
    """K += Σ_{t,s} (a_nt·a_ms + c)(b_nt·b_ms), a few samples against all that are not before them."""
    num_samples, positions = factors.num_samples, factors.num_positions
    inputs, grads = factors.inputs.flatten(0, 1), factors.output_grads.flatten(0, 1)
    for start, stop in chunks(num_samples, inputs.element_size() * positions * positions * num_samples):
        some, rest = slice(start * positions, stop * positions), slice(start * positions, None)
        products = inputs[some] @ inputs[rest].T
        if factors.bias:
            products += 1
        products *= grads[some] @ grads[rest].T
        block = products.view(stop - start, positions, num_samples - start, positions).sum((1, 3))
        gram[start:stop, start:] += block
        gram[stop:, start:stop] += block[:, stop - start :].T


def add_gram_by_rows(gram: Tensor, rows: Callable[[int, int], Tensor], num_params: int) -> None:
    """K += the Gram matrix of whatever gives explicit rows, of a few samples at a time.

    Args:
        gram: K, [N, N].
        rows: (start, stop) → explicit gradients, [stop − start, p].
        num_params: p.
    """
    ranges = chunks(len(gram), gram.element_size() * num_params)
    for start, stop in ranges:
        some = rows(start, stop)
        for first, last in ranges:
            if first < start:
                block = some @ rows(first, last).T
                gram[start:stop, first:last] += block
                gram[first:last, start:stop] += block.T
        gram[start:stop, start:stop] += some @ some.T
