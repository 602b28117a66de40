"""Factors: the one data format, per-sample gradients as sums of outer products that are never stored.

After ``inputs`` [N, T, I] and ``output_grads`` [N, T, O] the gradient of sample n is Σ_t b_nt a_ntᵀ, [O, I], whatever the layer was.
Four kinds differ only in how ``inputs`` is held: the matrix itself (`Dense`), a layer's own input whose patches are formed where they are
used (`Patches`), indices in place of one-hot rows (`Lookup`), and nothing at all (`Explicit`: T = I = 1, the rows are the gradients).

A *piece* is one parameter's share of the columns; `Dense` has up to two (weight and bias, the constant column of the inputs).
Everything here is linear algebra on the local columns [p]; which parameters they belong to is `gradient_matrix`'s business.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

# Rows are formed for so many bytes at a time: large enough for full-speed products, small beside an ordinary backward pass.
CHUNK_BYTES = 64 * 2**20


class Factors(Protocol):
    """What a gradient matrix asks of factors; N samples, p local columns, k vectors at once."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of columns of each piece; they add up to p."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients of samples start … stop − 1, [stop − start, p]."""

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v for [p, k], giving [N, k]."""

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w for [N, k], giving [p, k]."""

    def select(self, indices: Tensor) -> Factors:
        """The factors of some samples, ``indices`` [M]; of the sums over some minibatches, ``indices`` [M, B]: more positions a sample."""

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """The factors restricted to some of their pieces."""

    def slices(self, limit_bytes: int) -> Iterator[Factors]:
        """The factors' columns in parts whose rows for all samples fit a limit (one output's at least), in no particular order."""


FactorsT = TypeVar("FactorsT", "Dense", "Patches", "Lookup", "Explicit")


def chunks(num_samples: int, bytes_per_sample: int) -> list[tuple[int, int]]:
    """Ranges of samples whose rows fit `CHUNK_BYTES`, at least one sample each."""
    step = max(1, min(num_samples, CHUNK_BYTES // max(1, bytes_per_sample)))
    return [(start, min(start + step, num_samples)) for start in range(0, num_samples, step)]


@dataclass(frozen=True)
class Explicit:
    """Per-sample gradients held as they are: scales and shifts, and whatever has no cheaper form.

    Args:
        output_grads: the rows themselves, [N, p].
    """

    output_grads: Tensor

    @property
    def num_samples(self) -> int:
        """N."""
        return self.output_grads.shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """One piece of p columns."""
        return (self.output_grads.shape[1],)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop − 1, [stop − start, p]."""
        return self.output_grads[start:stop]

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""
        return self.output_grads.square().sum(1)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]."""
        return self.output_grads @ vectors

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]."""
        return self.output_grads.T @ weights

    def select(self, indices: Tensor) -> Explicit:
        """Rows of samples [M], or their sums over minibatches [M, B]."""
        rows = self.output_grads[indices]
        return Explicit(rows if indices.ndim == 1 else rows.sum(1))

    def keep(self, pieces: Sequence[bool]) -> Explicit:
        """All or nothing: there is one piece."""
        return self if pieces[0] else Explicit(self.output_grads[:, :0])

    def slices(self, limit_bytes: int) -> Iterator[Explicit]:
        """The rows are there already."""
        yield self


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
        """Whether products of positions, T²(I + O), cost less than explicit gradients, T·I·O plus the I·O that is written and read."""
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
            self, inputs=_gathered(self.inputs, indices), output_grads=_gathered(self.output_grads, indices)
        )

    def keep(self, pieces: Sequence[bool]) -> Dense:
        """The factors of the weight, of the bias, or of both."""
        kept = iter(pieces)
        return dataclasses.replace(self, weight=self.weight and next(kept), bias=self.bias and next(kept))

    def slices(self, limit_bytes: int) -> Iterator[Dense]:
        """Some outputs at a time."""
        for start, stop in _output_ranges(self.output_grads, self.inputs.shape[2], limit_bytes):
            yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])


@dataclass(frozen=True)
class Lookup:
    """Embeddings: inputs are indices in place of one-hot rows; gradient Σ_t e_{i_nt} b_ntᵀ, [V, O].

    Args:
        indices: i, [N, T], int64; a position whose index is −1 contributes nothing (padding).
        output_grads: b, [N, T, O].
        num_embeddings: V.
    """

    indices: Tensor
    output_grads: Tensor
    num_embeddings: int

    @property
    def num_samples(self) -> int:
        """N."""
        return self.indices.shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """V·O."""
        return (self.num_embeddings * self.output_grads.shape[2],)

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients, [n, V·O], by scattered addition."""
        indices, grads = self.indices[start:stop], self.output_grads[start:stop]
        rows = grads.new_zeros(stop - start, self.num_embeddings + 1, grads.shape[2])
        where = indices.remainder(self.num_embeddings + 1)[..., None].expand_as(
            grads
        )  # −1 lands in an extra row, dropped below
        return rows.scatter_add_(1, where, grads)[:, :-1].flatten(1)

    def gram(self) -> Tensor:
        """K = Σ_{t,s} [i_nt = i_ms] b_nt·b_ms, [N, N]: only positions that share an index meet.

        The occurrences are sorted by index and summed a sample, so that each index costs (occurrences)² O.
        """
        num_samples, num_positions = self.indices.shape
        flat = self.indices.flatten()
        samples = torch.arange(num_samples, device=flat.device).repeat_interleave(num_positions)
        cells, where = torch.unique((flat * num_samples + samples)[flat >= 0], return_inverse=True)
        summed = self.output_grads.new_zeros(len(cells), self.output_grads.shape[2])
        summed.index_add_(0, where, self.output_grads.flatten(0, 1)[flat >= 0])
        words, counts = torch.unique_consecutive(cells // num_samples, return_counts=True)
        gram = summed.new_zeros(num_samples, num_samples)
        start = 0
        for count in counts.tolist():
            members, block = (cells % num_samples)[start : start + count], summed[start : start + count]
            gram[members[:, None], members] += block @ block.T
            start += count
        return gram

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N], by position pairs with equal indices."""
        same = (self.indices[:, :, None] == self.indices[:, None, :]) & (self.indices[:, :, None] >= 0)
        return (torch.bmm(self.output_grads, self.output_grads.transpose(1, 2)) * same).sum((1, 2))

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]: gathered rows of v against b."""
        grads = self.output_grads.flatten(1)
        valid = (self.indices >= 0)[..., None]
        where = self.indices.clamp_min(0)
        tables = vectors.T.reshape(-1, self.num_embeddings, self.output_grads.shape[2])
        return torch.stack([torch.linalg.vecdot((table[where] * valid).flatten(1), grads) for table in tables], 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: rows of w ⊙ b added where they belong."""
        where = self.indices.flatten().remainder(self.num_embeddings + 1)
        columns = []
        for weight in weights.unbind(1):
            grads = (self.output_grads * weight[:, None, None]).flatten(0, 1)
            table = grads.new_zeros(self.num_embeddings + 1, grads.shape[1]).index_add_(0, where, grads)
            columns.append(table[:-1].flatten())
        return torch.stack(columns, 1)

    def select(self, indices: Tensor) -> Lookup:
        """The factors of samples [M] or of minibatches [M, B]."""
        return dataclasses.replace(
            self, indices=_gathered(self.indices, indices), output_grads=_gathered(self.output_grads, indices)
        )

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """All or nothing: there is one piece."""
        return self if pieces[0] else Explicit(self.output_grads.new_zeros(self.num_samples, 0))

    def slices(self, limit_bytes: int) -> Iterator[Lookup]:
        """Some outputs at a time."""
        for start, stop in _output_ranges(self.output_grads, self.num_embeddings, limit_bytes):
            yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])


@dataclass(frozen=True)
class Patches:
    """Convolutions: the factor keeps the layer's own input; patches are formed chunk by chunk and never stored.

    y = conv(x, W) has the per-sample gradient Σ_t b_nt patch_t(x_n)ᵀ, [O, I/groups, *kernel]; a transposed convolution is the same with
    the roles of x and b exchanged. F frames a sample (2-D convolutions inside a video model, say) are further positions.

    Args:
        inputs: x, [N, F, C, *spatial], already padded.
        output_grads: b, [N, F, O, *spatial'].
        kernel: size of the kernel, one number an axis.
        stride: strides.
        dilation: dilations.
        groups: number of groups.
    """

    inputs: Tensor
    output_grads: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[O, I/groups, *kernel]."""
        return (self.output_grads.shape[2], self.inputs.shape[2] // self.groups, *self.kernel)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights."""
        return (math.prod(self.weight_shape),)

    def _patches(self, start: int, stop: int) -> Tensor:
        """Patches of some samples as a strided view copied once, [n, F, groups, I/groups·kernel, T]."""
        view = self.inputs[start:stop]
        dims = len(self.kernel)
        for axis, (size, step, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            view = view.unfold(3 + axis, dilation * (size - 1) + 1, step)[..., ::dilation]
            view = view.narrow(3 + axis, 0, self.output_grads.shape[3 + axis])
        order = [0, 1, 2, *range(3 + dims, 3 + 2 * dims), *range(3, 3 + dims)]
        n, frames, channels = view.shape[:3]
        per_group = channels // self.groups * math.prod(self.kernel)
        return view.permute(order).reshape(n, frames, self.groups, per_group, -1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Explicit gradients, [n, O·I/groups·kernel]: B Pᵀ for each sample and group."""
        grads = self.output_grads[start:stop].flatten(3)
        n, frames, channels, positions = grads.shape
        patches = self._patches(start, stop).transpose(1, 2).reshape(n * self.groups, frames, -1, positions)
        grads = grads.view(n, frames, self.groups, channels // self.groups, positions).transpose(1, 2)
        grads = grads.reshape(n * self.groups, frames, -1, positions)
        rows = torch.matmul(grads, patches.transpose(2, 3)).sum(1)
        return rows.reshape(n, -1)

    def squared_norms(self) -> Tensor:
        """‖g_n‖², [N]."""
        return squared_norms_by_rows(self)

    @property
    def _frames(self) -> tuple[Tensor, Tensor]:
        return self.inputs.flatten(0, 1), self.output_grads.flatten(0, 1)

    def matvec(self, vectors: Tensor) -> Tensor:
        """G v, [N, k]: ⟨b_n, conv(x_n, V)⟩, without patches."""
        inputs, grads = self._frames
        spatial = tuple(slice(0, size) for size in grads.shape[2:])
        columns = []
        for vector in vectors.unbind(1):
            outputs = torch.convolution(inputs, vector.reshape(self.weight_shape), None, **self._geometry)[
                :, :, *spatial
            ]
            outputs = outputs[(slice(None), slice(None), *spatial)]
            columns.append(torch.linalg.vecdot(outputs.flatten(1), grads.flatten(1)).view(self.num_samples, -1).sum(1))
        return torch.stack(columns, 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: the ordinary weight gradient of w ⊙ b."""
        inputs, _ = self._frames
        like = inputs.new_empty(1).expand(self.weight_shape)
        columns = []
        for weight in weights.unbind(1):
            scaled = (self.output_grads * weight.view(-1, *[1] * (self.output_grads.ndim - 1))).flatten(0, 1)
            gradient = torch.ops.aten.convolution_backward(
                scaled, self._cropped(inputs), like, None, *self._geometry.values(), [False, True, False]
            )[1]
            columns.append(gradient.flatten())
        return torch.stack(columns, 1)

    def _cropped(self, inputs: Tensor) -> Tensor:
        """The inputs without the border that no patch reaches, as the weight gradient's own size check wants them."""
        sizes = [
            (out - 1) * step + dilation * (size - 1) + 1
            for out, step, dilation, size in zip(
                self.output_grads.shape[3:], self.stride, self.dilation, self.kernel, strict=True
            )
        ]
        return inputs[(slice(None), slice(None), *(slice(0, size) for size in sizes))]

    @property
    def _geometry(self) -> dict[str, Any]:
        """Arguments of torch.convolution after the bias, in its order."""
        dims = len(self.kernel)
        return {
            "stride": self.stride,
            "padding": (0,) * dims,
            "dilation": self.dilation,
            "transposed": False,
            "output_padding": (0,) * dims,
            "groups": self.groups,
        }

    def select(self, indices: Tensor) -> Patches:
        """The factors of samples [M] or of minibatches [M, B]."""
        return dataclasses.replace(
            self, inputs=_gathered(self.inputs, indices), output_grads=_gathered(self.output_grads, indices)
        )

    def keep(self, pieces: Sequence[bool]) -> Factors:
        """All or nothing: there is one piece."""
        return self if pieces[0] else Explicit(self.inputs.new_zeros(self.num_samples, 0))

    def unfolded(self) -> Dense:
        """The same gradients with the patches stored, for the few positions of deep layers; ungrouped only."""
        patches = self._patches(0, self.num_samples)[:, :, 0].transpose(2, 3).flatten(1, 2)
        return Dense(patches, self.output_grads.flatten(3).transpose(2, 3).flatten(1, 2))

    def slices(self, limit_bytes: int) -> Iterator[Patches]:
        """Some outputs at a time; whole groups where there are several."""
        per_group, inputs = self.weight_shape[0] // self.groups, self.inputs.shape[2] // self.groups
        weights = math.prod(self.weight_shape[1:])
        if self.groups == 1:
            for start, stop in _output_ranges(self.output_grads, weights, limit_bytes):
                yield dataclasses.replace(self, output_grads=self.output_grads[:, :, start:stop])
            return
        step = max(1, limit_bytes // (4 * self.num_samples * weights * per_group))
        for start in range(0, self.groups, step):
            stop = min(start + step, self.groups)
            yield dataclasses.replace(
                self,
                inputs=self.inputs[:, :, start * inputs : stop * inputs],
                output_grads=self.output_grads[:, :, start * per_group : stop * per_group],
                groups=stop - start,
            )


def _output_ranges(output_grads: Tensor, weights: int, limit_bytes: int) -> list[tuple[int, int]]:
    """Ranges of outputs whose explicit gradients for all samples fit a limit."""
    num_samples, out_features = output_grads.shape[0], output_grads.shape[2]
    step = max(1, limit_bytes // (output_grads.element_size() * max(1, num_samples * weights)))
    return [(start, min(start + step, out_features)) for start in range(0, out_features, step)]


def squared_norms_by_rows(factors: Factors) -> Tensor:
    """‖g_n‖² by forming the rows of a few samples at a time, [N]."""
    norms = []
    for start, stop in chunks(factors.num_samples, 4 * sum(factors.sizes)):
        rows = factors.rows(start, stop)
        norms.append(torch.linalg.vecdot(rows, rows))
    return torch.cat(norms)


def stack(parts: Sequence[Factors]) -> Factors:
    """One kind's factors of several sets of samples, one after the other; shorter sequences are padded with zero gradients."""
    first = parts[0]
    if isinstance(first, Explicit):
        return Explicit(torch.cat([part.output_grads for part in parts if isinstance(part, Explicit)]))
    if isinstance(first, Dense):
        dense = [part for part in parts if isinstance(part, Dense)]
        inputs, grads = _padded([part.inputs for part in dense]), _padded([part.output_grads for part in dense])
        return dataclasses.replace(first, inputs=inputs, output_grads=grads)
    if isinstance(first, Lookup):
        lookups = [part for part in parts if isinstance(part, Lookup)]
        indices = _padded([part.indices for part in lookups], value=-1)
        return dataclasses.replace(
            first, indices=indices, output_grads=_padded([part.output_grads for part in lookups])
        )
    if isinstance(first, Patches):
        patches = [part for part in parts if isinstance(part, Patches)]
        return dataclasses.replace(
            first,
            inputs=torch.cat([part.inputs for part in patches]),
            output_grads=torch.cat([part.output_grads for part in patches]),
        )
    raise TypeError(f"stack: factors must be of a kind of this file, got {type(first).__name__}.")


def can_stack(parts: Sequence[Factors]) -> bool:
    """Whether `stack` holds for these parts: the same kind, the same columns, and for patches the same spatial sizes."""
    first = parts[0]
    same = all(type(part) is type(first) and part.sizes == first.sizes for part in parts)
    if same and isinstance(first, Patches):
        key = (first.inputs.shape[1:], first.output_grads.shape[1:], first._geometry)
        return all(
            isinstance(part, Patches) and (part.inputs.shape[1:], part.output_grads.shape[1:], part._geometry) == key
            for part in parts
        )
    return same


def _gathered(tensor: Tensor, indices: Tensor) -> Tensor:
    """Samples [M] of a tensor [N, T, …], or minibatches [M, B] whose positions follow one another, [M, B·T, …]."""
    chosen = tensor[indices]
    return chosen if indices.ndim == 1 else chosen.flatten(1, 2)


def _padded(tensors: Sequence[Tensor], value: int = 0) -> Tensor:
    """Tensors [N_i, T_i, …] one after the other, padded to the longest T."""
    longest = max(tensor.shape[1] for tensor in tensors)
    if all(tensor.shape[1] == longest for tensor in tensors):
        return torch.cat(list(tensors))
    padded = []
    for tensor in tensors:
        full = tensor.new_full((tensor.shape[0], longest, *tensor.shape[2:]), value)
        full[:, : tensor.shape[1]] = tensor
        padded.append(full)
    return torch.cat(padded)
