"""Rows looked up in a table: embeddings and bags of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgdkern.factors import Lookup
from sgdkern.layers import Call, Example, Unsupported, Use, layer


def _refuse_side_effects(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None or scale_grad_by_freq:
        raise Unsupported("max_norm and scale_grad_by_freq have no per-sample gradient")


def _masked(indices: Tensor, padding_idx: int | None, num_embeddings: int) -> Tensor:
    """Indices with −1 where the padding entry, which receives no gradient, was looked up."""
    if padding_idx is None:
        return indices
    return indices.masked_fill(indices == padding_idx % num_embeddings, -1)


def _examples() -> Iterator[Example]:
    yield Example(nn.Embedding(9, 3), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.Embedding(9, 3, padding_idx=2), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.Embedding(9, 3), (torch.randint(0, 9, (5,)),))
    yield Example(nn.Embedding(9, 3, sparse=True), (torch.randint(0, 9, (5, 2, 3)),))


@layer(F.embedding, examples=_examples)
def embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[Use]:
    """Y = W[i]: inputs are the indices, never one-hot rows."""
    _refuse_side_effects(max_norm, scale_grad_by_freq)
    indices = call.samples(input, 0).long()
    yield Use(
        Lookup(_masked(indices, padding_idx, len(weight)), call.samples(call.output_grad, 1), len(weight)), (weight,)
    )


class _Bag(nn.Module):
    """An embedding bag with weights for its members."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 3, mode="sum")

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = self.bag(indices, per_sample_weights=weights)
        return out


def _bag_examples() -> Iterator[Example]:
    yield Example(nn.EmbeddingBag(9, 3), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.EmbeddingBag(9, 3, mode="sum", padding_idx=1), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.EmbeddingBag(9, 3, padding_idx=1), (torch.randint(0, 9, (5, 4)),))
    yield Example(_Bag(), (torch.randint(0, 9, (5, 4)), torch.rand(5, 4)))


@layer(F.embedding_bag, examples=_bag_examples)
def embedding_bag(
    call: Call,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Iterator[Use]:
    """Y = Σ or mean of W[i] over a bag: a lookup whose every position has the bag's gradient, or its share."""
    _refuse_side_effects(max_norm, scale_grad_by_freq)
    if (
        offsets is not None
        or input.ndim != 2
        or mode == "max"
        or (per_sample_weights is not None and call.tracked(per_sample_weights))
    ):
        raise Unsupported("bags given by offsets, maxima, or learned weights")
    bags = call.samples(input, 1).long()
    indices = _masked(bags, padding_idx, len(weight))
    share = torch.ones_like(indices, dtype=weight.dtype)
    if per_sample_weights is not None:
        share = call.samples(per_sample_weights, 1)
    if mode == "mean":
        share = share / (indices >= 0).sum(-1, keepdim=True).clamp_min(1)
    grads = call.samples(call.output_grad, 1)[:, :, None] * share[..., None]
    yield Use(Lookup(indices.flatten(1), grads.flatten(1, 2), len(weight)), (weight,))
