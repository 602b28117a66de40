"""Several networks trained side by side, each on its own part of the data: as one stacked MLP, or one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_ACTIVATIONS = 1 << 22  # numbers in the widest layer of one evaluation: 16 MiB of float32


class Members(Protocol):
    """E networks that are trained and evaluated together."""

    num_members: int

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> Tensor:
        """Take the steps of one epoch, member e on minibatches of orders[e]; return its outputs there, [E, n, C]."""

    def logits(self, inputs: Tensor, places: Tensor) -> Tensor:
        """Return the outputs of member e for the samples places[e], [E, M, C]."""


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

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> Tensor:
        """Take the steps of one epoch.

        Args:
            inputs: [N, I].
            labels: [N] int64.
            orders: [E, n] int64, the samples that each member visits, in order; n a multiple of the minibatch.
            batch_size: samples a step.

        Returns:
            [E, n, C], the outputs for each sample as it was visited, before the step that it was part of.
        """
        return torch.cat([self.step(inputs[batch], labels[batch]) for batch in orders.split(batch_size, dim=1)], dim=1)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step; inputs [E, B, I], labels [E, B]; returns the outputs before it, [E, B, C]."""
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
        return activations[-1]

    def logits(self, inputs: Tensor, places: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            inputs: [N, I].
            places: [E, M] int64, the samples asked of each member.

        Returns:
            [E, M, C].
        """
        widest = max(max(weight.shape[1:]) for weight in self.weights)
        columns = max(1, MAX_ACTIVATIONS // (self.num_members * widest))
        return torch.cat([self._outputs(inputs[part]) for part in places.split(columns, dim=1)], dim=1)

    def _outputs(self, outputs: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = torch.baddbmm(bias, outputs.relu_() if k else outputs, weight)
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

    def train_epoch(self, inputs: Tensor, labels: Tensor, orders: Tensor, batch_size: int) -> Tensor:
        """Take the steps of one epoch.

        Args:
            inputs: [N, ...].
            labels: [N] int64.
            orders: [E, n] int64, the samples that each member visits, in order; n a multiple of the minibatch.
            batch_size: samples a step.

        Returns:
            [E, n, C], the outputs in training mode for each sample as it was visited, before the step.
        """
        visited = []
        for model, optimizer, order in zip(self.models, self.optimizers, orders, strict=True):
            model.train()
            outputs = []
            for batch in order.split(batch_size):
                outputs.append(model(inputs[batch]))
                optimizer.zero_grad()
                functional.cross_entropy(outputs[-1], labels[batch]).backward()
                optimizer.step()
                outputs[-1] = outputs[-1].detach()
            visited.append(torch.cat(outputs))
        return torch.stack(visited)

    @torch.no_grad()
    def logits(self, inputs: Tensor, places: Tensor) -> Tensor:
        """Return the outputs in evaluation mode.

        Args:
            inputs: [N, ...].
            places: [E, M] int64, the samples asked of each member.

        Returns:
            [E, M, C].
        """
        outputs = []
        for model, mine in zip(self.models, places, strict=True):
            model.eval()
            outputs.append(torch.cat([model(inputs[part]) for part in mine.split(self.eval_batch_size)]))
        return torch.stack(outputs)
