"""Source: the passes over the rows of G that statistics need, whoever makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class GradientSource(Protocol):
    """Whatever can make passes over the rows of G: a `GradientMatrix` or `StreamingGradients`."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def num_params(self) -> int:
        """P."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors that it takes and gives."""

    @property
    def device(self) -> torch.device:
        """Device of the vectors that it takes and gives."""

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""

    def mean(self) -> Tensor:
        """ḡ, [P]."""

    def matvec(self, vector: Tensor, /) -> Tensor:
        """G v, [P] or [P, k] → [N] or [N, k]."""

    def rmatvec(self, weights: Tensor, /) -> Tensor:
        """Gᵀ w, [N] or [N, k] → [P] or [P, k]."""

    def minibatch_squared_norms(self, indices: Tensor, /) -> Tensor:
        """‖mean of the rows of each minibatch‖², [M, B] → [M]."""


@runtime_checkable
class GramSource(Protocol):
    """A source that can give K as well."""

    @property
    def prefers_gram(self) -> bool:
        """Whether K is there, or costs less than passes."""

    def gram(self) -> Tensor:
        """K = G Gᵀ, [N, N]."""

    def gram_matvec(self, weights: Tensor, /) -> Tensor:
        """K w, [N] or [N, k] as the weights, without K where it is not there."""


class Shaped(ABC):
    """N, P, dtype and device of what knows its samples' losses and where its parameters' columns lie.

    Attributes:
        parameters: name → slice of the flat columns [P].
        losses: l_n, [N].
    """

    parameters: Mapping[str, slice]
    losses: Tensor

    @property
    @abstractmethod
    def _like(self) -> Tensor:
        """A tensor of the dtype and on the device of every product."""

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.num_samples} samples x {self.num_params} parameters, {self.dtype}, {self.device})"

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.losses)

    @property
    def num_params(self) -> int:
        """P."""
        return max((columns.stop for columns in self.parameters.values()), default=0)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, P), of G."""
        return self.num_samples, self.num_params

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of every product."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Device of every product."""
        return self._like.device
