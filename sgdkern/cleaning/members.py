"""Several networks trained side by side, each on its own part of the data: as one stacked MLP, or one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_LOGITS = 1 << 24  # numbers in one evaluation's activations: 64 MiB of float32


class Members(Protocol):
    """E networks that are trained and evaluated together."""

    num_members: int

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> None:
        """Take the steps of one epoch; member e visits the samples orders[e] in minibatches."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return every member's outputs for every sample, [E, N, C]."""


class StackedMLP:
    """E ReLU networks of the same shape as one stack of matrices, with the backward pass written out.

    A layer of all members is one batched product [E, B, I] @ [E, I, O], so that a step costs a handful of calls
    whatever E is. Training minimises cross-entropy by SGD with momentum: v <- m v + grad, w <- w - lr v.

    Args:
        sizes: widths of the layers, inputs first, classes last.
        num_members: E.
        generator: draws the weights (U(-1/sqrt(I), 1/sqrt(I)), torch's default for linear layers), on the CPU.
        lr: learning rate.
        momentum: m.
        device: where to compute.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_members: int,
        *,
        generator: torch.Generator,
        lr: float,
        momentum: float,
        device: torch.device,
    ) -> None:
        self.num_members = num_members
        self.lr, self.momentum = lr, momentum
        self.weights: list[Tensor] = []  # [E, I, O] each
        self.biases: list[Tensor] = []  # [E, 1, O] each
        for width_in, width_out in zip(sizes, sizes[1:], strict=False):
            bound = 1 / math.sqrt(width_in)
            for stack, height in ((self.weights, width_in), (self.biases, 1)):
                uniform = torch.rand(num_members, height, width_out, generator=generator)
                stack.append(((2 * uniform - 1) * bound).to(device))
        self.velocities = [torch.zeros_like(weight) for weight in (*self.weights, *self.biases)]

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> None:
        """Take the steps of one epoch.

        Args:
            inputs: [N, I].
            labels: [N] int64.
            orders: [E, n] int64, the samples that each member visits, in order.
            batch_size: B; a last smaller minibatch is left out.
        """
        for start in range(0, orders.shape[1] - batch_size + 1, batch_size):
            batch = orders[:, start : start + batch_size]
            self.step(inputs[batch], labels[batch])

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Take one step; inputs [E, B, I], labels [E, B]."""
        layers = len(self.weights)
        activations = [inputs]
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = torch.baddbmm(bias, activations[-1], weight)
            activations.append(outputs.relu_() if k < layers - 1 else outputs)
        # d loss / d logits = (softmax - one-hot) / B
        grads = torch.softmax(activations[-1], dim=-1)
        grads.scatter_add_(2, labels.unsqueeze(2), grads.new_full((*labels.shape, 1), -1.0))
        grads /= labels.shape[1]
        for k in range(layers - 1, -1, -1):
            below = activations[k]
            grads_below = torch.bmm(grads, self.weights[k].mT).mul_(below > 0) if k else grads
            velocity, bias_velocity = self.velocities[k], self.velocities[layers + k]
            velocity.mul_(self.momentum).baddbmm_(below.mT, grads)
            bias_velocity.mul_(self.momentum).add_(grads.sum(dim=1, keepdim=True))
            self.weights[k].sub_(velocity, alpha=self.lr)
            self.biases[k].sub_(bias_velocity, alpha=self.lr)
            grads = grads_below

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the outputs, [E, N, C]; the first layer of all members is one product.

        Args:
            inputs: [N, I].

        Returns:
            [E, N, C].
        """
        widest = max(weight.shape[2] for weight in self.weights)
        rows = max(1, MAX_LOGITS // (self.num_members * widest))
        return torch.cat([self._logits(chunk) for chunk in inputs.split(rows)], dim=1)

    def _logits(self, inputs: Tensor) -> Tensor:
        count, width_in, width_out = self.weights[0].shape
        joined = self.weights[0].permute(1, 0, 2).reshape(width_in, count * width_out)
        outputs = (inputs @ joined).view(-1, count, width_out).permute(1, 0, 2) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            outputs = torch.baddbmm(bias, outputs.relu_(), weight)
        return outputs


class SeparateModels:
    """Any networks, trained one after another within an epoch.

    Args:
        models: E modules that map inputs [B, ...] to outputs [B, C].
        optimizer: makes an optimiser for the parameters of one model.
        device: where to compute.
        eval_batch_size: samples a forward pass when evaluating.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        device: torch.device,
        eval_batch_size: int = 512,
    ) -> None:
        self.models = [model.to(device) for model in models]
        self.num_members = len(self.models)
        self.optimizers = [
            optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
            for model in self.models
        ]
        self.eval_batch_size = eval_batch_size

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> None:
        """Take the steps of one epoch.

        Args:
            inputs: [N, ...].
            labels: [N] int64.
            orders: [E, n] int64, the samples that each member visits, in order.
            batch_size: B; a last smaller minibatch is left out.
        """
        for model, optimizer, order in zip(self.models, self.optimizers, orders, strict=True):
            model.train()
            for start in range(0, len(order) - batch_size + 1, batch_size):
                batch = order[start : start + batch_size]
                loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Return the outputs in evaluation mode, [E, N, C].

        Args:
            inputs: [N, ...].

        Returns:
            [E, N, C].
        """
        outputs = []
        for model in self.models:
            model.eval()
            outputs.append(torch.cat([model(chunk) for chunk in inputs.split(self.eval_batch_size)]))
        return torch.stack(outputs)
