"""One step of SGD on a small multilayer perceptron, its gradient written out: no graph, no allocation.

With a_0 the inputs, z_l = a_{l−1} W_lᵀ + b_l, a_l = f(z_l) and the mean cross-entropy of softmax(z_L):

    δ_L = softmax(z_L) − onehot(y),    δ_l = (δ_{l+1} W_{l+1}) ⊙ f′(a_l)
    ∇W_l = δ_lᵀ a_{l−1} / B,           ∇b_l = δ_lᵀ 1 / B

A product δᵀa that is added to something is one call of BLAS, so that the gradient is never stored: it goes straight
into the weights, or into the velocities where there is momentum (docs/paper.md has the times).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_DERIVATIVES: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda delta, outputs: torch.ops.aten.threshold_backward.grad_input(delta, outputs, 0.0, grad_input=delta),
    nn.Tanh: lambda delta, outputs: torch.ops.aten.tanh_backward.grad_input(delta, outputs, grad_input=delta),
}
_FUNCTIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.ReLU: Tensor.relu_, nn.Tanh: Tensor.tanh_}


@dataclass(frozen=True, eq=False)
class _Memory:
    """What a step on so many samples writes to: a_0 … a_{L−1} and z_L, δ_1 … δ_L, onehot(y); and a column of ones."""

    activations: list[Tensor]  # [B, O_l]
    deltas: list[Tensor]  # [B, O_l]
    onehot: Tensor  # [B, C]
    ones: Tensor  # [B]

    @classmethod
    def of(cls, size: int, widths: Sequence[int], like: Tensor) -> _Memory:
        """Memory for `size` samples, in the dtype and on the device of a tensor."""
        return cls(
            [like.new_empty(size, width) for width in widths],
            [like.new_empty(size, width) for width in widths[1:]],
            like.new_empty(size, widths[-1]),
            like.new_ones(size),
        )


class FusedStep:
    """The steps of SGD that ``Trainer`` takes, for linear layers with ReLU or tanh between them and cross-entropy.

    The weights are those that autograd and ``torch.optim.SGD`` give, but for rounding.

    Args:
        layers: The linear layers, first one first.
        activations: What follows each of them but the last: ``nn.ReLU`` or ``nn.Tanh``.
        inputs: All training inputs [N, ...].
        targets: Their classes, int64 [N].
        velocities: One tensor for each weight and bias in their order, changed in place; none without momentum.
        lr: Learning rate α.
        momentum: m.
        weight_decay: w.

    Example:
        >>> import torch
        >>> layer, inputs = torch.nn.Linear(3, 2), torch.randn(4, 3)
        >>> step = FusedStep(
        ...     [layer], [], inputs, torch.tensor([0, 1, 1, 0]), [], lr=0.1, momentum=0.0, weight_decay=0.0
        ... )
        >>> step(torch.tensor([2, 0]))
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        activations: Sequence[type[nn.Module]],
        inputs: Tensor,
        targets: Tensor,
        velocities: Sequence[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        self._weights = [layer.weight.detach() for layer in layers]
        self._biases = [layer.bias.detach() for layer in layers]
        self._transposed = [weight.t() for weight in self._weights]
        self._functions = [_FUNCTIONS[kind] for kind in activations]
        self._derivatives = [_DERIVATIVES[kind] for kind in activations]
        self._inputs = inputs.flatten(1)
        self._onehot = functional.one_hot(targets, layers[-1].out_features).to(inputs.dtype)
        self._velocities = list(velocities)
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._widths = [self._inputs.shape[1], *(layer.out_features for layer in layers)]
        self._memory: dict[int, _Memory] = {}

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> None:
        """Take one step.

        Args:
            batch: Indices of the minibatch, int64 [B].
        """
        size = batch.shape[0]
        if size not in self._memory:  # two sizes: the last minibatch of an epoch may be smaller
            self._memory[size] = _Memory.of(size, self._widths, self._inputs)
        memory = self._memory[size]
        self._forward(batch, memory)
        for layer in range(len(self._weights) - 1, -1, -1):
            delta, inputs = memory.deltas[layer], memory.activations[layer]
            if layer:  # before these weights change
                torch.mm(delta, self._weights[layer], out=memory.deltas[layer - 1])
                self._derivatives[layer - 1](memory.deltas[layer - 1], inputs)
            self._update(layer, delta.t(), inputs, memory.ones)

    def _forward(self, batch: Tensor, memory: _Memory) -> None:
        """All a_l, and δ_L."""
        activations = memory.activations
        torch.index_select(self._inputs, 0, batch, out=activations[0])
        for layer, function in enumerate(self._functions):
            torch.addmm(self._biases[layer], activations[layer], self._transposed[layer], out=activations[layer + 1])
            function(activations[layer + 1])
        torch.addmm(self._biases[-1], activations[-2], self._transposed[-1], out=activations[-1])
        torch.softmax(activations[-1], 1, out=memory.deltas[-1])
        torch.index_select(self._onehot, 0, batch, out=memory.onehot)
        memory.deltas[-1].sub_(memory.onehot)

    def _update(self, layer: int, delta: Tensor, inputs: Tensor, ones: Tensor) -> None:
        """Change one layer's weights and bias; `delta` is transposed, [O, B]."""
        share = 1 / ones.shape[0]
        weight, bias = self._weights[layer], self._biases[layer]
        if not self._momentum:
            if self._weight_decay:  # added: the factor 1 − α w would be rounded the same way at every step
                weight.add_(weight, alpha=-self._lr * self._weight_decay)
                bias.add_(bias, alpha=-self._lr * self._weight_decay)
            weight.addmm_(delta, inputs, alpha=-self._lr * share)
            bias.addmv_(delta, ones, alpha=-self._lr * share)
            return
        velocities = self._velocities[2 * layer : 2 * layer + 2]
        velocities[0].addmm_(delta, inputs, beta=self._momentum, alpha=share)
        velocities[1].addmv_(delta, ones, beta=self._momentum, alpha=share)
        for velocity, parameter in zip(velocities, (weight, bias), strict=True):
            if self._weight_decay:
                velocity.add_(parameter, alpha=self._weight_decay)
            parameter.add_(velocity, alpha=-self._lr)


def fusible_layers(
    model: nn.Module, loss_fn: object, inputs: Tensor, targets: Tensor
) -> tuple[list[nn.Linear], list[type[nn.Module]]] | None:
    """The layers and activations of a model whose steps `FusedStep` can take.

    That is an ``nn.Sequential`` of linear layers with biases and ReLU or tanh between them, after an optional
    ``nn.Flatten``, without hooks, all of it trained, under the mean cross-entropy of classes.

    Args:
        model: Any network.
        loss_fn: Its loss function.
        inputs: All training inputs [N, ...].
        targets: Their targets [N, ...].

    Returns:
        The linear layers and the kinds of the activations between them; None for any other model, loss or data.
    """
    if type(model) is not nn.Sequential or not _is_cross_entropy(loss_fn):
        return None
    modules = list(model)
    if modules and type(modules[0]) is nn.Flatten and (modules[0].start_dim, modules[0].end_dim) == (1, -1):
        modules = modules[1:]
    elif inputs.ndim != 2:
        return None
    layers = [module for module in modules[::2] if type(module) is nn.Linear]
    between = modules[1::2]
    if len(modules) % 2 == 0 or len(set(layers)) != len(modules[::2]):
        return None
    if any(type(module) not in _FUNCTIONS for module in between) or any(map(_is_watched, model.modules())):
        return None
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    tensors = [parameter for parameter in parameters if parameter is not None]
    alike = {(tensor.dtype, tensor.device) for tensor in (*tensors, inputs)}
    if len(set(tensors)) < 2 * len(layers) or len(alike) > 1 or not all(tensor.requires_grad for tensor in tensors):
        return None
    fits = targets.ndim == 1 and targets.dtype == torch.int64 and inputs.flatten(1).shape[1] == layers[0].in_features
    if not fits or not 0 <= int(targets.min()) <= int(targets.max()) < layers[-1].out_features:
        return None
    return layers, [type(module) for module in between]


def _is_cross_entropy(loss_fn: object) -> bool:
    """Whether it is the plain mean cross-entropy."""
    if isinstance(loss_fn, nn.CrossEntropyLoss):
        plain = loss_fn.weight is None and not loss_fn.label_smoothing and not _is_watched(loss_fn)
        return plain and loss_fn.reduction == "mean" and loss_fn.ignore_index < 0
    return loss_fn is functional.cross_entropy


def _is_watched(module: nn.Module) -> bool:
    """Whether anything is called along with the module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
