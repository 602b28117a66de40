"""A small trainer for small networks: plain SGD in many quick steps, repeatable to the bit and resumable at any step.

The samples are in memory and every epoch is one permutation of them, cut into minibatches; no data loader, no
optimiser object. A step of a 64-64-64-10 network on 25 samples is bound by the cost of about forty tensor calls, not
by arithmetic: on one core of an EPYC (Zen 4), ``torch.optim.SGD`` took 0.34–0.49 ms a step (its foreach and fused
forms no less), ``autograd.grad`` with one fused ``_foreach_add_`` 0.25 ms, formulas written out by hand 0.10 ms.
Multilayer perceptrons take the last (``fused_step``), every other model the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.fused_step import FusedStep, fusible_layers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads inside, so that results do not depend on how many the process was given.

    A product with a long inner axis, cut over several threads, adds its terms in another order; networks of this size
    are no faster for it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainer:
    """Stochastic gradient descent on tensors in memory.

    Step: v ← m v + ∇L_µ + w θ; θ ← θ − α v, with the learning rate α, momentum m and weight decay w, as
        ``torch.optim.SGD`` does it.
    Every epoch visits each sample once, in a new order; the last minibatch of an epoch may be smaller.

    Args:
        model: The network, changed in place.
        loss_fn: A function of (outputs, targets) that returns the mean loss of a minibatch.
        inputs: Training inputs [N, ...].
        targets: Training targets [N, ...].
        lr: Learning rate α.
        batch_size: B, samples a minibatch.
        momentum: m, in [0, 1).
        weight_decay: w, at least 0.
        generator: Draws the order of the samples (a CPU generator).
        num_threads: Threads to compute on, whatever the process was given.

    Raises:
        ValueError: If a setting or a shape cannot be used.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 2)
        >>> inputs, targets = torch.randn(10, 3), torch.arange(10) % 2
        >>> trainer = Trainer(
        ...     model, nn.functional.cross_entropy, inputs, targets, lr=0.1, batch_size=4, generator=torch.Generator()
        ... )
        >>> trainer.advance(6)
        >>> trainer.step, trainer.epoch
        (6, 2.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        *,
        lr: float,
        batch_size: int,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        generator: torch.Generator,
        num_threads: int = 1,
    ) -> None:
        if inputs.shape[0] != targets.shape[0] or inputs.shape[0] == 0:
            raise ValueError(
                "Trainer: inputs and targets must share their first axis, with at least one sample, "
                f"got {list(inputs.shape)} and {list(targets.shape)}."
            )
        if batch_size < 1:
            raise ValueError(f"Trainer: batch_size must be at least 1, got {batch_size}.")
        if lr <= 0.0 or not 0.0 <= momentum < 1.0 or weight_decay < 0.0:
            raise ValueError(
                "Trainer: lr must be above 0, momentum in [0, 1), weight_decay at least 0, "
                f"got lr={lr}, momentum={momentum}, weight_decay={weight_decay}."
            )
        self.model = model
        self.step = 0
        self._loss_fn = loss_fn
        self._inputs, self._targets = inputs, targets
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._batch_size = batch_size
        self._generator = generator
        self._num_threads = num_threads
        self._parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self._parameters:
            raise ValueError("Trainer: the model must have parameters that require gradients, got none. Unfreeze some.")
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters] if momentum else []
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches an epoch, ⌈N / B⌉."""
        return -(-self._inputs.shape[0] // self._batch_size)

    @property
    def epoch(self) -> float:
        """How many times the samples have been visited so far."""
        return self.step / self.steps_per_epoch

    def advance(self, num_steps: int) -> None:
        """Take some steps.

        Args:
            num_steps: How many.
        """
        self.model.train()
        with threads(self._num_threads):
            step = self._fused_step() or self._autograd_step
            for _ in range(num_steps):
                step(self._next_batch())
                self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """All that decides the steps to come, as tensors and numbers only (``torch.load(weights_only=True)`` reads it).

        Returns:
            Copies; later steps leave them alone.
        """
        return {
            "step": self.step,
            "model": {name: value.detach().clone() for name, value in self.model.state_dict().items()},
            "velocities": [velocity.clone() for velocity in self._velocities],
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state; the steps that follow are the same to the bit.

        Args:
            state: What :meth:`state_dict` returned, for the same model, data and settings.

        Raises:
            ValueError: If the state belongs to other settings.
        """
        order = state["order"].cpu()
        if order.numel() not in (0, self._inputs.shape[0]) or len(state["velocities"]) != len(self._velocities):
            raise ValueError(
                "Trainer: the saved state must belong to this data set and these settings, got an order of "
                f"{order.numel()} samples for {self._inputs.shape[0]} and "
                f"{len(state['velocities'])} momentum buffers for {len(self._velocities)}."
            )
        self.model.load_state_dict(state["model"])
        for velocity, saved in zip(self._velocities, state["velocities"], strict=True):
            velocity.copy_(saved)
        self._order = order
        self._generator.set_state(state["generator"].cpu())
        self.step = int(state["step"])

    def _next_batch(self) -> Tensor:
        """Indices of the next minibatch, int64 [B]; a new order where an epoch begins."""
        position = self.step % self.steps_per_epoch
        if position == 0:
            self._order = torch.randperm(self._inputs.shape[0], generator=self._generator)
        return self._order[position * self._batch_size : (position + 1) * self._batch_size].to(self._inputs.device)

    def _fused_step(self) -> FusedStep | None:
        """The step written out, where the model allows it now: hooks may have come since the last steps."""
        found = fusible_layers(self.model, self._loss_fn, self._inputs, self._targets)
        if found is None:
            return None
        return FusedStep(
            *found,
            self._inputs,
            self._targets,
            self._velocities,
            lr=self._lr,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
        )

    def _autograd_step(self, batch: Tensor) -> None:
        """One minibatch, one change of the parameters, for any model."""
        loss = self._loss_fn(self.model(self._inputs[batch]), self._targets[batch])
        gradients = list(torch.autograd.grad(loss, self._parameters))
        with torch.no_grad():
            if self._weight_decay:
                torch._foreach_add_(gradients, self._parameters, alpha=self._weight_decay)
            if self._momentum:
                torch._foreach_mul_(self._velocities, self._momentum)
                torch._foreach_add_(self._velocities, gradients)
                gradients = self._velocities
            torch._foreach_add_(self._parameters, gradients, alpha=-self._lr)


@dataclass(frozen=True)
class Evaluation:
    """How a classifier does on labelled samples.

    Attributes:
        loss: Mean cross-entropy, nats.
        error: Share of samples whose label is not the predicted one.
    """

    loss: float
    error: float


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 2048) -> Evaluation:
    """Loss and error of a classifier, in evaluation mode and without gradients.

    Args:
        model: Returns logits [N, classes]; its training flags come back as they were.
        inputs: [N, ...].
        labels: int64 [N].
        batch_size: Samples a forward pass; bounds the memory.

    Returns:
        The two means over all samples.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    loss, errors = 0.0, 0
    try:
        with torch.no_grad():
            for batch, targets in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
                logits = model(batch)
                loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
                errors += int((logits.argmax(1) != targets).sum())
    finally:
        for module, flag in flags.items():
            module.training = flag
    return Evaluation(loss / inputs.shape[0], errors / inputs.shape[0])


def build_model(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    seed: int = 0,
) -> nn.Module:
    """One of the main job's networks, with PyTorch's default initialisation.

    Args:
        name: ``mlp`` (fully connected layers of the widths ``hidden``) or ``cnn`` (3 × 3 convolutions with ``hidden``
            channels, each followed by the activation and a 2 × 2 maximum while the image is large enough, then one
            linear layer).
        input_shape: [channels, height, width].
        num_classes: Number of logits.
        hidden: Widths or channels, first layer first.
        activation: ``relu`` or ``tanh``.
        seed: Draws the initial weights; the global random state is left alone.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: If the name, the activation, the widths or the shape cannot be used.
    """
    if name not in MODELS:
        raise ValueError(f"build_model: name must be one of {', '.join(MODELS)}, got {name!r}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"build_model: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if any(width < 1 for width in hidden) or len(input_shape) != 3 or num_classes < 2:
        raise ValueError(
            "build_model: hidden widths must be at least 1, input_shape [channels, height, width], num_classes at "
            f"least 2, got {list(hidden)}, {list(input_shape)} and {num_classes}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](tuple(input_shape), num_classes, tuple(hidden), ACTIVATIONS[activation])


def _mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden: tuple[int, ...], activation: Callable[[], nn.Module]
) -> nn.Module:
    """Flatten, then linear layers with activations between them."""
    channels, height, width = input_shape
    widths = (channels * height * width, *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def _cnn(
    input_shape: tuple[int, ...], num_classes: int, hidden: tuple[int, ...], activation: Callable[[], nn.Module]
) -> nn.Module:
    """Convolutions that keep the size, halved after each while it is at least 2, then one linear layer."""
    channels, height, width = input_shape
    layers: list[nn.Module] = []
    for out_channels in hidden:
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), activation()]
        channels = out_channels
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, num_classes))


MODELS: dict[str, Callable[[tuple[int, ...], int, tuple[int, ...], Callable[[], nn.Module]], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
}
