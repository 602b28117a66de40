"""Linear layers: inputs and output gradients as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.factors.protocol import gathered, output_ranges, squared_norms_by_rows


@dataclass(frozen=True)
class Dense:
    """Linear layers: gradient Σ_t b_nt a_ntᵀ of the weight [O, I], and Σ_t b_nt of the bias [O].

    Args:
        inputs: a, [N, T, I].
        output_grads: b, [N, T, O].
        weight: whether the weight's columns belong to G.
        bias: whether the bias's do: a constant column of the inputs.
    """

    inputs: Tensor
    output_grads: Tensor
    weight: bool = True
    bias: bool = False

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[0]

    @property
    def num_positions(self) -> int:
        """T."""
        return self.inputs.shape[1]

    @property
    def _shape(self) -> tuple[int, int]:
        return self.output_grads.shape[2], self.inputs.shape[2]

    @property
    def sizes(self) -> tuple[int, ...]:
        """(O·I, O), each where it belongs to G."""
        out_features, in_features = self._shape
        return (out_features * in_features,) * self.weight + (out_features,) * self.bias

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients, [n, p]: one batched product."""
        grads = self.output_grads[start:stop]
        pieces = []
        if self.weight:
            pieces.append(torch.bmm(grads.transpose(1, 2), self.inputs[start:stop]).flatten(1))
        if self.bias:
            pieces.append(grads.sum(1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    @property
    def pairs_are_cheaper(self) -> bool:
        """Whether products of positions, T²(I + O), cost less than explicit gradients, T·I·O and I·O of traffic."""
        out_features, in_features = self._shape
        positions = self.num_positions
        return positions**2 * (in_features + out_features) < (positions + 4) * in_features * out_features

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N], by position pairs or by explicit gradients, whichever is cheaper."""
        grads, inputs = self.output_grads, self.inputs
        if not self.weight:
            return grads.sum(1).square().sum(1)
        if self.num_positions == 1:
            return grads.square().sum((1, 2)) * (inputs.square().sum((1, 2)) + float(self.bias))
        if self.pairs_are_cheaper:
            products = torch.bmm(inputs, inputs.transpose(1, 2)) + float(self.bias)
            return (products * torch.bmm(grads, grads.transpose(1, 2))).sum((1, 2))
        return squared_norms_by_rows(self)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]: Σ_t b_ntᵀ V a_nt, one product with the inputs a vector."""
        out_features, in_features = self._shape
        grads = self.output_grads
        columns = []
        for vector in vectors.unbind(1):
            if self.weight:
                outputs = self.inputs @ vector[: out_features * in_features].view(out_features, in_features).T
                if self.bias:
                    outputs += vector[out_features * in_features :]
            else:
                outputs = vector.expand_as(grads)
            columns.append(torch.linalg.vecdot(outputs.flatten(1), grads.flatten(1)))
        return torch.stack(columns, 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: (w ⊙ B)ᵀ A, one product a vector."""
        inputs = self.inputs.flatten(0, 1)
        columns = []
        for weight in weights.unbind(1):
            grads = (self.output_grads * weight[:, None, None]).flatten(0, 1)
            pieces = [(grads.T @ inputs).flatten()] * self.weight + [grads.sum(0)] * self.bias
            columns.append(torch.cat(pieces))
        return torch.stack(columns, 1)

    def select(self, indices: Tensor) -> Dense:
        """The factors of samples [M] or of minibatches [M, B]."""
        return dataclasses.replace(
            self, inputs=gathered(self.inputs, indices), output_grads=gathered(self.output_grads, indices)
        )

    def keep(self, pieces: Sequence[bool]) -> Dense:
        """The factors of the weight, of the bias, or of both."""
        kept = iter(pieces)
        return dataclasses.replace(self, weight=self.weight and next(kept), bias=self.bias and next(kept))

    def slices(self, limit_bytes: int) -> Iterator[Dense]:
        """Some outputs at a time."""
        for start, stop in output_ranges(self.output_grads, self.inputs.shape[2], limit_bytes):
            yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])
