"""Convolutions: patches of the layer's own input, formed where they are used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdkern.factors.dense import Dense
from sgdkern.factors.explicit import Explicit
from sgdkern.factors.protocol import Factors, chunks, gathered, output_ranges, squared_norms_by_rows


@dataclass(frozen=True)
class Patches:
    """Convolutions: the factor keeps the layer's own input; patches are formed chunk by chunk and never stored.

    y = conv(x, W) has the per-sample gradient Σ_t b_nt patch_t(x_n)ᵀ, [O, I/groups, *kernel]; a transposed convolution
    is the same with the roles of x and b exchanged. F frames a sample (2-D convolutions inside a video model, say) are
    further positions.

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
    def bytes_per_sample(self) -> int:
        """Size of one sample's factors."""
        return self.output_grads[:1].nbytes + self.inputs[:1].nbytes

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
        """Explicit gradients, [n, O·I/groups·kernel], with the patches of a few samples at a time."""
        frames, channels = self.inputs.shape[1:3]
        patches = frames * channels * math.prod(self.kernel) * math.prod(self.output_grads.shape[3:])
        ranges = chunks(stop - start, self.output_grads.element_size() * patches)
        rows = [self._rows(start + first, start + last) for first, last in ranges]
        return rows[0] if len(rows) == 1 else torch.cat(rows) if rows else self.inputs.new_zeros(0, *self.sizes)

    def _rows(self, start: int, stop: int) -> Tensor:
        """B Pᵀ for each sample and group."""
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
        window = (slice(None), slice(None), *(slice(0, size) for size in grads.shape[2:]))
        columns = []
        for vector in vectors.unbind(1):
            outputs = torch.convolution(inputs, vector.reshape(self.weight_shape), None, **self.geometry)
            columns.append(
                torch.linalg.vecdot(outputs[window].flatten(1), grads.flatten(1)).view(self.num_samples, -1).sum(1)
            )
        return torch.stack(columns, 1)

    def rmatvec(self, weights: Tensor) -> Tensor:
        """Gᵀ w, [p, k]: the ordinary weight gradient of w ⊙ b."""
        inputs, _ = self._frames
        like = inputs.new_empty(1).expand(self.weight_shape)
        columns = []
        for weight in weights.unbind(1):
            scaled = (self.output_grads * weight.view(-1, *[1] * (self.output_grads.ndim - 1))).flatten(0, 1)
            gradient = torch.ops.aten.convolution_backward(
                scaled, self._cropped(inputs), like, None, *self.geometry.values(), [False, True, False]
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
        window = (slice(None), slice(None), *(slice(0, size) for size in sizes))
        return inputs[window]

    @property
    def geometry(self) -> dict[str, Any]:
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
            self, inputs=gathered(self.inputs, indices), output_grads=gathered(self.output_grads, indices)
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
            for start, stop in output_ranges(self.output_grads, weights, limit_bytes):
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
