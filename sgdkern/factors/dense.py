"""Linear layers: inputs and output gradients as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sgdkern.factors.explicit import Explicit
from sgdkern.factors.protocol import Factors, chunks, gathered, output_ranges, squared_norms_by_rows
from sgdkern.substitutes import linear


@dataclass(frozen=True)
class Dense:
    """Linear layers: gradient Σ_t b_nt a_ntᵀ of the weight [O, I], and Σ_t b_nt of a bias [O].

    Args:
        inputs: a, [N, T, I].
        output_grads: b, [N, T, O].
        bias: whether a bias follows the weight: a constant column of the inputs, which is not stored.
    """

    inputs: Tensor
    output_grads: Tensor
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
    def bytes_per_sample(self) -> int:
        """Size of one sample's factors."""
        return self.output_grads[:1].nbytes + self.inputs[:1].nbytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """(O·I,) or (O·I, O)."""
        out_features = self.output_grads.shape[2]
        return (out_features * self.inputs.shape[2], out_features)[: 1 + self.bias]

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients, [n, p]: one batched product."""
        grads = self.output_grads[start:stop]
        weight = torch.bmm(grads.transpose(1, 2), self.inputs[start:stop]).flatten(1)
        return torch.cat([weight, grads.sum(1)], 1) if self.bias else weight

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N], by position pairs or by explicit gradients, whichever is cheaper.

        Pairs cost T²(I + O) a sample, explicit gradients T·I·O and some four more passes over I·O of memory.

        Returns:
            Squared norms, [N].
        """
        grads, inputs = self.output_grads, self.inputs
        positions, in_features, out_features = self.num_positions, inputs.shape[2], grads.shape[2]
        if positions == 1:
            of_grads, of_inputs = (torch.linalg.vector_norm(factor, dim=(1, 2)).square() for factor in (grads, inputs))
            alone: Tensor = of_grads * (of_inputs + float(self.bias))
            return alone
        if positions**2 * (in_features + out_features) < (positions + 4) * in_features * out_features:
            norms = [grads.new_zeros(0)]
            for start, stop in chunks(self.num_samples, 2 * grads.element_size() * positions**2):
                some, given = inputs[start:stop], grads[start:stop]
                products = torch.bmm(some, some.transpose(1, 2)) + float(self.bias)
                norms.append((products * torch.bmm(given, given.transpose(1, 2))).sum((1, 2)))
            return torch.cat(norms)
        return squared_norms_by_rows(self)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]: Σ_t b_ntᵀ V a_nt, one product with the inputs a vector."""
        weights, inputs = self.sizes[0], self.inputs.flatten(0, 1)
        grads = self.output_grads.flatten(1)
        columns = []
        for vector in vectors.unbind(1):
            weight = vector[:weights].view(self.output_grads.shape[2], self.inputs.shape[2])
            outputs = linear(inputs, weight, vector[weights:] if self.bias else None)
            columns.append(outputs.view_as(grads).mul_(grads).sum(1))
        return torch.stack(columns, 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: (w ⊙ B)ᵀ A, one product a vector."""
        inputs = self.inputs.flatten(0, 1)
        columns = inputs.new_empty(weights.shape[1], sum(self.sizes))
        for weight, column in zip(weights.unbind(1), columns, strict=True):
            grads = (self.output_grads * weight[:, None, None]).flatten(0, 1)
            torch.mm(grads.T, inputs, out=column[: self.sizes[0]].view(grads.shape[1], inputs.shape[1]))
            if self.bias:
                torch.sum(grads, 0, out=column[self.sizes[0] :])
        return columns.T

    def select(self, indices: Tensor) -> Dense:
        """The factors of samples [M] or of minibatches [M, B]."""
        inputs, grads = gathered(self.inputs, indices), gathered(self.output_grads, indices)
        return dataclasses.replace(self, inputs=inputs, output_grads=grads)

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """The weight's factors, or the bias's."""
        if pieces[0]:
            return dataclasses.replace(self, bias=self.bias and pieces[1])
        return Explicit(self.output_grads.sum(1) if self.bias and pieces[1] else self.output_grads.sum(1)[:, :0])

    def condensed(self) -> Dense:
        """The same gradients from fewer positions: neighbours with the same output gradients, or inputs, are one.

        So they are after a mean over positions, and, zeros, where a loss reads one position of a sequence. Output
        gradients are added, Σ_t b_nt, and inputs averaged, which holds for the weight whichever of them are the same
        and for the bias; at least half of the positions must go.

        Returns:
            The factors of fewer positions, or these.
        """
        for factor in (self.output_grads, self.inputs) if self.num_positions > 1 and self.num_samples else ():
            if (counts := _runs(factor)) is not None:
                inputs = torch.stack([part.mean(1) for part in self.inputs.split(counts, 1)], 1)
                grads = torch.stack([part.sum(1) for part in self.output_grads.split(counts, 1)], 1)
                return dataclasses.replace(self, inputs=inputs, output_grads=grads)
        return self

    def slices(self, limit_bytes: int) -> Iterator[Dense]:
        """Some outputs at a time."""
        for start, stop in output_ranges(self.output_grads, self.inputs.shape[2], limit_bytes):
            yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])


def _runs(factor: Tensor) -> list[int] | None:
    """Lengths of runs of positions with the same numbers, for all samples; None where they are more than half of T."""
    num_samples, num_positions = factor.shape[:2]
    same = torch.ones(num_positions - 1, dtype=torch.bool, device=factor.device)
    start, stop = 0, 1  # one sample tells nearly always that nothing repeats, and else a few do
    while start < num_samples:
        some = factor[start:stop]
        same &= (some[:, 1:] == some[:, :-1]).all(2).all(0)
        if 2 * int(same.sum()) < num_positions:
            return None
        start, stop = stop, 8 * stop
    ends = [*(~same).nonzero()[:, 0].tolist(), num_positions - 1]
    return [end - before for before, end in pairwise([-1, *ends])]
