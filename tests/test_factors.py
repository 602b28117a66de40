"""Each kind of factors as linear algebra, against its rows written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgdkern.factors import Dense, Explicit, Lookup, Patches, can_stack, chunks, stack

N, T, I, O, V = 5, 3, 4, 2, 6  # noqa: E741


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def explicit() -> tuple[Explicit, Tensor]:
    return Explicit(normal(N, 7)), normal(N, 7)


def dense(positions: int, bias: bool) -> tuple[Dense, Tensor]:
    inputs, grads = normal(N, positions, I), normal(N, positions, O)
    weight = sum(grads[:, t, :, None] * inputs[:, t, None, :] for t in range(positions)).flatten(1)
    return Dense(inputs, grads, bias=bias), torch.cat([weight, grads.sum(1)], 1) if bias else weight


def lookup() -> tuple[Lookup, Tensor]:
    indices, grads = torch.randint(-1, V, (N, T), generator=torch.Generator().manual_seed(0)), normal(N, T, O)
    rows = torch.zeros(N, V, O, dtype=torch.float64)
    for n in range(N):
        for t in range(T):
            if indices[n, t] >= 0:
                rows[n, indices[n, t]] += grads[n, t]
    return Lookup(indices, grads, V), rows.flatten(1)


def patches(stride: int, dilation: int, groups: int, frames: int) -> tuple[Patches, Tensor]:
    """Rows by autograd on torch's own convolution."""
    inputs = normal(N, frames, 4, 7, 6)
    weight = torch.zeros(6, 4 // groups, 2, 3, dtype=torch.float64, requires_grad=True)
    conv: Callable[[Tensor], Tensor] = lambda x: F.conv2d(x, weight, stride=stride, dilation=dilation, groups=groups)  # noqa: E731
    grads = normal(N, frames, *conv(inputs[:, 0]).shape[1:])
    rows = [
        torch.autograd.grad((conv(x) * grad).sum(), weight)[0].flatten() for x, grad in zip(inputs, grads, strict=True)
    ]
    return Patches(inputs, grads, (2, 3), (stride, stride), (dilation, dilation), groups), torch.stack(rows)


KINDS = {
    "explicit": explicit,
    "dense": lambda: dense(T, bias=False),
    "dense-bias": lambda: dense(T, bias=True),
    "dense-one-position": lambda: dense(1, bias=True),
    "dense-many-positions": lambda: dense(20, bias=True),
    "lookup": lookup,
    "patches": lambda: patches(1, 1, 1, 1),
    "patches-strided": lambda: patches(2, 1, 1, 1),
    "patches-dilated-groups": lambda: patches(1, 2, 2, 1),
    "patches-frames": lambda: patches(2, 2, 2, 3),
}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    return KINDS[request.param]()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows(pair: tuple[Any, Tensor]) -> None:
    factors, rows = pair
    close(factors.rows(0, N), rows)
    close(factors.rows(1, 3), rows[1:3])
    assert sum(factors.sizes) == rows.shape[1]
    assert factors.num_samples == N


def test_products(pair: tuple[Any, Tensor]) -> None:
    factors, rows = pair
    vectors, weights = normal(rows.shape[1], 3), normal(N, 3)
    close(factors.matvec(vectors), rows @ vectors)
    close(factors.rmatvec(weights), rows.T @ weights)
    close(factors.squared_norms(), rows.square().sum(1))
    if isinstance(factors, Lookup):
        close(factors.gram(), rows @ rows.T)


def test_select(pair: tuple[Any, Tensor]) -> None:
    factors, rows = pair
    some, minibatches = torch.tensor([4, 0, 0]), torch.tensor([[0, 1], [2, 2]])
    close(factors.select(some).rows(0, 3), rows[some])
    close(factors.select(minibatches).rows(0, 2), rows[minibatches].sum(1))


def test_pieces_kept(pair: tuple[Any, Tensor]) -> None:
    factors, rows = pair
    starts = [sum(factors.sizes[:place]) for place in range(len(factors.sizes) + 1)]
    for place in range(len(factors.sizes)):
        kept = factors.keep([piece == place for piece in range(len(factors.sizes))])
        close(kept.rows(0, N), rows[:, starts[place] : starts[place + 1]])
    assert factors.keep([False] * len(factors.sizes)).rows(0, N).shape == (N, 0)


@pytest.mark.parametrize("limit", [1, 500, 10**9])
def test_slices_add_up(pair: tuple[Any, Tensor], limit: int) -> None:
    factors, rows = pair
    parts = [part.rows(0, N) for part in factors.slices(limit)]
    assert sum(part.shape[1] for part in parts) == rows.shape[1]
    close(sum(part @ part.T for part in parts), rows @ rows.T)


def test_stack(pair: tuple[Any, Tensor]) -> None:
    factors, rows = pair
    parts = [factors.select(torch.tensor([2, 3])), factors.select(torch.tensor([0]))]
    assert can_stack(parts)
    close(stack(parts).rows(0, 3), rows[[2, 3, 0]])


@pytest.mark.parametrize("kind", ["dense-bias", "lookup"])
def test_shorter_sequences_are_padded(kind: str) -> None:
    factors, rows = KINDS[kind]()
    longer = factors.select(torch.tensor([[0, 1]]))
    assert can_stack([factors, longer])
    close(stack([factors, longer]).rows(0, N + 1), torch.cat([rows, rows[[0, 1]].sum(0, keepdim=True)]))


def test_unlike_factors_do_not_stack() -> None:
    assert not can_stack([dense(T, bias=True)[0], dense(T, bias=False)[0]])
    assert not can_stack([explicit()[0], lookup()[0]])
    assert not can_stack([patches(1, 1, 1, 1)[0], patches(2, 1, 1, 1)[0]])
    with pytest.raises(TypeError, match="kind of this file, got object"):
        stack([object()])  # type: ignore[list-item]


def test_patches_unfolded() -> None:
    factors, rows = patches(2, 2, 1, 2)
    close(factors.unfolded().rows(0, N), rows)


@pytest.mark.parametrize(("count", "size"), [(5, 1), (7, 10**9), (1, 3), (1000, 2**20), (0, 5)])
def test_chunks_cover_all_samples(count: int, size: int) -> None:
    ranges = chunks(count, size)
    assert [sample for start, stop in ranges for sample in range(start, stop)] == list(range(count))
    assert all(stop - start == 1 or (stop - start) * size <= 64 * 2**20 for start, stop in ranges)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", ["inputs", "output_grads"])
@pytest.mark.parametrize(
    ("runs", "left"),
    [([0, 0, 0, 0, 0, 0], 1), ([0, 0, 1, 2, 2, 2], 3), ([0, 0, 1, 1, 0, 0], 3), ([0, 0, 1, 2, 3, 3], 6)],
)
def test_positions_that_are_the_same_are_one(runs: list[int], left: int, factor: str, bias: bool) -> None:
    """Neighbours alike in all samples, where that is half of them; gradients of weight and bias stay."""
    tensors = {"inputs": normal(N, 6, I), "output_grads": normal(N, 6, O)}
    tensors[factor] = tensors[factor][:, runs]
    factors = Dense(**tensors, bias=bias)
    found = factors.condensed()
    assert found.num_positions == left
    torch.testing.assert_close(found.rows(0, N), factors.rows(0, N))
    for sample in range(N):
        other = tensors[factor].clone()
        other[sample] = normal(6, other.shape[2])
        unlike = Dense(**(tensors | {factor: other}), bias=bias)
        assert unlike.condensed() is unlike  # in this sample no two are alike
