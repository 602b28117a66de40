"""Rows looked up in a table: embeddings and bags of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sgdkern.factors import Lookup
from sgdkern.layers import Call, Example, Unsupported, Use, layer


def _refuse_counts(scale_grad_by_freq: bool) -> None:
    if scale_grad_by_freq:
        raise ValueError(
            "per_sample_gradients: samples must not be coupled, but scale_grad_by_freq divides an embedding's gradient "
            "by counts over the whole batch. No per-sample gradient exists there. Set scale_grad_by_freq=False while "
            "measuring."
        )


def _examples() -> Iterator[Example]:
    yield Example(nn.Embedding(9, 3), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.Embedding(9, 3, padding_idx=2), (torch.randint(0, 9, (5, 4)),))
    yield Example(nn.Embedding(9, 3), (torch.randint(0, 9, (5,)),))
    yield Example(nn.Embedding(9, 3, sparse=True), (torch.randint(0, 9, (5, 2, 3)),))


@layer(torch.embedding, examples=_examples)
def embedding(
    call: Call,
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[Use]:
    """Y = W[i]: inputs are the indices, never one-hot rows; −1 where the padding entry, which learns nothing, was."""
    _refuse_counts(scale_grad_by_freq)
    indices = call.samples(indices, 0).long()
    indices = indices.masked_fill(indices == padding_idx, -1)
    yield Use(Lookup(indices, call.samples(call.output_grad, 1), len(weight)), (weight,))


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


_SUM, _MEAN = 0, 1  # torch.embedding_bag's modes; 2 is the maximum


@layer(torch.embedding_bag, examples=_bag_examples)
def embedding_bag(
    call: Call,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Iterator[Use]:
    """Y = Σ or mean of W[i] over a bag: a lookup whose every position has the bag's gradient, or its share."""
    _refuse_counts(scale_grad_by_freq)
    if mode not in (_SUM, _MEAN) or call.tracked(per_sample_weights):
        raise Unsupported("maxima, or learned weights")
    starts = offsets[:-1] if include_last_offset else offsets
    sizes = torch.cat([starts, starts.new_tensor([len(indices)])]).diff()
    bags = torch.arange(len(starts), device=starts.device).repeat_interleave(sizes)
    places = torch.arange(len(indices), device=starts.device) - starts[bags]
    table = indices.new_full((len(starts), max(1, int(sizes.max()))), -1, dtype=torch.int64)
    table[bags, places] = indices.long()
    if padding_idx is not None:
        table.masked_fill_(table == padding_idx, -1)
    share = call.output_grad.new_ones(table.shape)
    if per_sample_weights is not None:
        share[bags, places] = per_sample_weights
    if mode == _MEAN:
        share = share / (table >= 0).sum(-1, keepdim=True).clamp_min(1)
    grads = call.samples(call.output_grad, 1)[:, :, None] * call.samples(share, 1)[..., None]
    yield Use(Lookup(call.samples(table, 1).flatten(1), grads.flatten(1, 2), len(weight)), (weight,))
