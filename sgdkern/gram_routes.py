"""gram_routes: the ways from a layer's factors to its Gram matrix, and which one costs least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from sgdkern import ops
from sgdkern.factors import Dense, Explicit, Factors, Lookup, Patches, chunks, gram_products

# Inputs, output gradients, kernel, stride and dilation.
Place: TypeAlias = tuple[Tensor, Tensor, list[int], list[int], list[int]]

# Where an operation has no compiled twin, its reference holds explicit rows: of as many outputs at a time as fit here.
SLICE_BYTES = 128 * 2**20
# Rows that are there already are packed, and so copied, with the dense layers up to so many columns: scales and shifts.
PACKED_COLUMNS = 4096
# Up to so many outputs times vectors both products are one operation, 1.1 to 2 times faster than plain ones.
FEW_OUTPUTS = 512
# Gradients are formed for products with few vectors where the samples fill a vector register's panel, and where the sum
# over so many positions is what forming them costs: with 4 positions two products were faster, with 8 they were not.
FEWEST_SAMPLES, FEWEST_POSITIONS = 32, 8
# What a call from Python costs, about 50 microseconds, in multiply-adds.
CALL_PRODUCTS = 2**21


def as_dense_layer(factors: Factors) -> tuple[Tensor, Tensor, bool] | None:
    """Factors with one position a sample, as the operations on dense layers take them.

    Args:
        factors: the factors.

    Returns:
        Inputs [N, I], output gradients [N, O], and whether there is a constant column; None for other factors. Rows
        that are there already are a layer whose only input is the constant.
    """
    if isinstance(factors, Dense) and factors.num_positions == 1:
        return factors.inputs[:, 0], factors.output_grads[:, 0], factors.bias
    if isinstance(factors, Explicit):
        rows = factors.output_grads
        return rows.new_empty(len(rows), 0), rows, True
    return None


def _by_kind(layers: Sequence[tuple[Tensor, Tensor, bool]]) -> tuple[list[Tensor], list[Tensor], list[bool]]:
    """Layers as the operations take them: all inputs, all output gradients, all flags."""
    return [layer[0] for layer in layers], [layer[1] for layer in layers], [layer[2] for layer in layers]


def gram_of(layers: Sequence[Factors], like: Tensor) -> Tensor:
    """The sum of the Gram matrices of several sets of factors; what the first operation gives is K, never a copy of it.

    Args:
        layers: the factors, which share no parameter.
        like: gives N, dtype and device.

    Returns:
        K, [N, N].
    """
    dense, rest = _dense_and_rest(layers)
    gram = ops.gram(*_by_kind(dense)) if dense else like.new_zeros(len(like), len(like))
    for factors in rest:
        _add_gram(gram, factors)
    return gram


def add_grams(gram: Tensor, layers: Sequence[Factors]) -> None:
    """K += the Gram matrices of several sets of factors, in place; all dense layers in one operation.

    Args:
        gram: K, [N, N].
        layers: the factors, which share no parameter.
    """
    dense, rest = _dense_and_rest(layers)
    for factors in rest:
        _add_gram(gram, factors)
    if dense:
        gram += ops.gram(*_by_kind(dense))


def _dense_and_rest(layers: Sequence[Factors]) -> tuple[list[tuple[Tensor, Tensor, bool]], list[Factors]]:
    """Layers that one operation takes together, and the others."""
    dense, rest = [], []
    for factors in layers:
        for part in _parts(factors):
            layer = as_dense_layer(part) if is_packed(part) else None
            if layer is None:
                rest.append(part)
            else:
                dense.append(layer)
    return dense, rest


def is_packed(factors: Factors) -> bool:
    """Whether one operation takes the factors together with others of their kind, and packs them all.

    Args:
        factors: the factors.

    Returns:
        The answer: linear layers with one position, and rows of few columns that are there already.
    """
    if isinstance(factors, Explicit):
        return factors.sizes[0] <= PACKED_COLUMNS
    return isinstance(factors, Dense) and factors.num_positions == 1


def _parts(factors: Factors) -> list[Factors]:
    """A bias's gradients apart from a weight's where these are formed; a table of positions as the rows that it is."""
    if isinstance(factors, Lookup) and factors.is_shared:
        return [Explicit(factors.output_grads.flatten(1))]
    if isinstance(factors, Dense) and factors.bias and factors.num_positions > 1 and _by_positions(factors) is None:
        return [dataclasses.replace(factors, bias=False), Explicit(factors.output_grads.sum(1))]
    return [factors]


def norms_of_sums(layers: Sequence[Factors], indices: Tensor, like: Tensor) -> Tensor:
    """‖Σ_{n∈µ} g_n‖² of minibatches µ: by their pairs of samples, or by the sums themselves.

    A pair costs I + O and there are B/2 of them a sample; a sum costs I·O a sample and position, and a call.

    Args:
        layers: factors that share no parameter.
        indices: members, [M, B].
        like: gives dtype and device of the result.

    Returns:
        Squared norms, [M].
    """
    size = indices.shape[1]
    norms, ones = like.new_zeros(len(indices)), like.new_ones(size, 1)
    pairs = []
    for factors in layers:
        layer = as_dense_layer(factors)
        features = 0 if layer is None else layer[0].shape[1] + layer[1].shape[1]
        if layer is not None and size * size * features // 2 < size * sum(factors.sizes) + CALL_PRODUCTS:
            pairs.append(layer)
        else:
            for place, members in enumerate(indices):
                norms[place] += factors.select(members).rmatvec(ones).square().sum()
    if pairs:
        norms += ops.minibatch_norms(*_by_kind(pairs), indices)
    return norms


def _add_gram(gram: Tensor, factors: Factors) -> None:
    """K += the Gram matrix of one set of factors, in place; where gradients of a sequence are formed it has no bias.

    With T positions, I inputs and O outputs a pair of samples costs T²(I + O) by products of positions and I·O from
    explicit gradients, which cost T·I·O more a sample: 2 T·I·O / N a pair.

    Args:
        gram: K, [N, N].
        factors: the factors.
    """
    if isinstance(factors, Lookup):
        gram += factors.gram()
        return
    if (by_positions := _by_positions(factors)) is not None:
        gram += ops.gram_positions(by_positions.inputs, by_positions.output_grads, by_positions.bias)
        return
    for part in factors.slices(SLICE_BYTES):
        _add_gram_of_gradients(gram, part)


def gram_is_cheaper(layers: Sequence[Factors]) -> bool:
    """Whether K costs fewer multiply-adds than G (Gᵀ w): few samples, wide layers.

    It is then no larger than the factors: N (I + O) / 2 ≤ 2 I·O means N ≤ I + O.

    Args:
        layers: all factors of a gradient matrix.

    Returns:
        The answer.
    """
    num_samples = layers[0].num_samples if layers else 0
    of_gram = of_products = 0
    for factors in layers:
        positions, in_features, out_features = _sizes(factors)
        weights = in_features * out_features
        by_pairs = positions**2 * (in_features + out_features)
        of_gram += num_samples * min(num_samples * by_pairs, (num_samples + 2 * positions) * weights) // 2
        of_products += 2 * num_samples * positions * weights
    return of_gram <= of_products


def _sizes(factors: Factors) -> tuple[int, int, int]:
    """Positions, inputs and outputs of a layer; explicit gradients and rows of a table have a single input."""
    if isinstance(factors, Dense):
        return factors.num_positions, factors.inputs.shape[2], factors.output_grads.shape[2]
    if isinstance(factors, Patches):
        out_features = factors.weight_shape[0]
        positions = factors.output_grads.shape[1] * prod(factors.output_grads.shape[3:])
        return positions, factors.sizes[0] // out_features, out_features
    return prod(factors.output_grads.shape[1:-1]), 1, factors.output_grads.shape[-1]


def _by_positions(factors: Factors) -> Dense | None:
    """Factors whose Gram matrix costs less by products of positions than from explicit gradients; None for others."""
    if not isinstance(factors, Dense | Patches) or (isinstance(factors, Patches) and factors.groups > 1):
        return None
    positions, in_features, out_features = _sizes(factors)
    weights = in_features * out_features
    if positions**2 * (in_features + out_features) >= weights * (1 + 2 * positions / max(1, factors.num_samples)):
        return None
    return factors if isinstance(factors, Dense) else factors.unfolded()


def _add_gram_of_gradients(gram: Tensor, factors: Factors) -> None:
    """K += R Rᵀ with explicit gradients R, which are stored only where there is no other way."""
    plane = _plane(factors)
    if plane is not None:
        gram += ops.patch_gram(*plane)
    elif isinstance(factors, Dense):
        gram += ops.patch_gram(*_column(factors))
    else:
        _add_products(gram, factors.rows(0, factors.num_samples))


def squared_norms(factors: Factors) -> Tensor:
    """‖g_n‖² of one set of factors, [N]: for convolutions by pairs of positions or by explicit gradients.

    Args:
        factors: the factors.

    Returns:
        Squared norms, [N].
    """
    if not isinstance(factors, Patches) or _plane(factors) is None:
        return factors.squared_norms()
    positions, out_features = factors.output_grads[0, 0, 0].numel(), factors.weight_shape[0]
    in_features = factors.sizes[0] // out_features
    by_pairs = positions * (in_features + out_features) < in_features * out_features
    numbers = positions * (in_features + positions) if by_pairs else factors.sizes[0]
    norms = [factors.output_grads.new_zeros(0)]
    for start, stop in chunks(factors.num_samples, factors.output_grads.element_size() * numbers):
        some = dataclasses.replace(
            factors, inputs=factors.inputs[start:stop], output_grads=factors.output_grads[start:stop]
        )
        plane = None if by_pairs else _plane(some)
        if plane is None:
            norms.append(some.unfolded().squared_norms())
        else:
            norms.append(torch.linalg.vector_norm(ops.patch_gradients(*plane), dim=1).square())
    return torch.cat(norms)


def norms_and_products(layers: Sequence[Factors], weights: Tensor, *, norms: bool = True) -> Tensor:
    """Squared norms of per-sample gradients, and K W, without K: each layer by what multiplies least.

    A linear layer costs N²(I + O)/2 by pairs of samples, whose Gram matrix is multiplied tile by tile, and 2k N·I·O by
    Gᵀ W and G (Gᵀ W). At several positions gradients are formed once, some columns of G at a time: T multiply-adds a
    number, where its two products take 2k T.

    Args:
        layers: factors that share no parameter.
        weights: W, [N, k], in the results' dtype: float64 for float64 factors, else float32.
        norms: whether squared norms are wanted where they cost something of their own.

    Returns:
        [N, 1 + k]; without norms its first column means nothing.
    """
    total = weights.new_zeros(len(weights), 1 + weights.shape[1])
    pairs = []
    for factors in layers:
        layer = as_dense_layer(factors)
        if layer is not None and _by_pairs_of_samples(layer, weights.shape[1]):
            pairs.append(layer)
        elif layer is not None and isinstance(factors, Dense) and layer[1].shape[1] * weights.shape[1] <= FEW_OUTPUTS:
            total += ops.linear_gram_matvec(*layer, weights)
        elif places := _places(factors):
            for place in places:
                total += ops.patch_gram_matvec(*place, weights)
            if isinstance(factors, Dense) and factors.bias:
                total += _by_two_products(Explicit(factors.output_grads.sum(1)), weights, norms)
        else:
            total += _by_two_products(factors, weights, norms)
    if pairs:
        total += ops.gram_matvec(*_by_kind(pairs), weights)
    return total


def _by_pairs_of_samples(layer: tuple[Tensor, Tensor, bool], num_columns: int) -> bool:
    """Whether a linear layer's Gram matrix costs less than its products with k vectors."""
    inputs, grads, _ = layer
    in_features, out_features = inputs.shape[1], grads.shape[1]
    return len(inputs) * (in_features + out_features) <= 4 * num_columns * in_features * out_features


def _by_two_products(factors: Factors, weights: Tensor, norms: bool) -> Tensor:
    """Squared norms, where they are wanted, and G (Gᵀ W), [N, 1 + k]."""
    products = gram_products(factors, weights.to(factors.output_grads.dtype))
    first = squared_norms(factors)[:, None] if norms else products.new_zeros(len(products), 1)
    return torch.cat([first, products], 1)


def _places(factors: Factors) -> list[Place]:
    """The arguments of the operations that form gradients of some outputs at a time; none where nothing is gained."""
    if not isinstance(factors, Dense | Patches) or factors.num_samples < FEWEST_SAMPLES:
        return []
    if _sizes(factors)[0] < FEWEST_POSITIONS or not ops.patch_gram_matvec.is_compiled(factors.output_grads.device.type):
        return []  # the reference holds all gradients; two products and compiled norms are cheaper
    parts = factors.slices(SLICE_BYTES)
    places = [_column(part) if isinstance(part, Dense) else _plane(part) for part in parts]
    known = [place for place in places if place is not None]
    return known if len(known) == len(places) else []  # of several groups, the last part alone may hold a single one


def _column(factors: Dense) -> Place:
    """A sequence layer as a kernel of one over a column of positions."""
    # Inner products do not tell inputs from outputs; the operations prefer few of the former.
    narrow, wide = sorted((factors.inputs, factors.output_grads), key=lambda factor: factor.shape[2])
    inputs, grads = (factor.transpose(1, 2)[..., None] for factor in (narrow, wide))
    return inputs, grads, [1, 1], [1, 1], [1, 1]


def compact(factors: Factors) -> Factors:
    """The same gradients in fewer numbers: explicit, where a convolution has fewer weights than inputs and outputs.

    Args:
        factors: the factors of some samples.

    Returns:
        Explicit gradients, or the factors as they are.
    """
    if not isinstance(factors, Patches) or (plane := _plane(factors)) is None:
        return factors
    fewer = sum(factors.sizes) * factors.inputs.element_size() < factors.bytes_per_sample
    return Explicit(ops.patch_gradients(*plane)) if fewer else factors


def _plane(factors: Factors) -> Place | None:
    """The arguments of the operations on a convolution over at most a plane, without groups; None for others."""
    if not isinstance(factors, Patches) or factors.groups != 1 or factors.inputs.shape[1] != 1:
        return None
    inputs, grads = factors.inputs[:, 0], factors.output_grads[:, 0]
    kernel, stride, dilation = list(factors.kernel), list(factors.stride), list(factors.dilation)
    if len(kernel) == 1:  # one row
        inputs, grads = inputs[:, :, None], grads[:, :, None]
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
    return (inputs, grads, kernel, stride, dilation) if len(kernel) == 2 else None


def _add_products(gram: Tensor, rows: Tensor) -> None:
    """K += R Rᵀ in four bands of the lower triangle, 5/8 of the full product's work; mirrored."""
    band = max(1, -(-len(rows) // 4))
    for start in range(0, len(rows), band):
        stop = min(start + band, len(rows))
        block = rows[start:stop] @ rows[:stop].T
        gram[start:stop, :stop] += block
        gram[:start, start:stop] += block[:, :start].T


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
