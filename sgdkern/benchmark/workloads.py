"""The models and batches that every method is timed on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """One model in evaluation mode with one batch: the gradients of `loss(model(inputs), targets)` are asked for."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: nn.Module

    @property
    def num_samples(self) -> int:
        """N."""
        return self.inputs.shape[0]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that require gradients."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def num_params(self) -> int:
        """P."""
        return sum(p.numel() for p in self.parameters)

    def first(self, num_samples: int) -> "Problem":
        """The same model with the first samples only.

        Args:
            num_samples: How many are kept.

        Returns:
            The smaller problem, which shares the model.
        """
        return self.part(0, num_samples)

    def part(self, start: int, stop: int) -> "Problem":
        """The same model with some samples only.

        Args:
            start: The first sample.
            stop: One past the last.

        Returns:
            The smaller problem, which shares the model.
        """
        return replace(self, inputs=self.inputs[start:stop], targets=self.targets[start:stop])


@dataclass(frozen=True)
class Workload:
    """A named problem.

    Attributes:
        name: How it is asked for.
        text: What it is.
        make: Builds it, always the same.
    """

    name: str
    text: str
    make: Callable[[], Problem]


WORKLOADS: dict[str, Workload] = {}


def _workload(name: str, text: str) -> Callable[[Callable[[], Problem]], Callable[[], Problem]]:
    def register(make: Callable[[], Problem]) -> Callable[[], Problem]:
        WORKLOADS[name] = Workload(name, text, make)
        return make

    return register


def _problem(model: nn.Module, inputs: Tensor, num_classes: int = 10) -> Problem:
    targets = torch.randint(num_classes, (inputs.shape[0],), generator=torch.Generator().manual_seed(1))
    return Problem(model.eval(), inputs, targets, nn.CrossEntropyLoss())


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mlp(num_samples: int, *widths: int) -> Problem:
    """Make a fully connected network with ReLUs and a batch of normal numbers.

    Args:
        num_samples: N.
        *widths: Of the input, the hidden layers and the output.

    Returns:
        The problem.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return _problem(nn.Sequential(*layers[:-1]), _normal(num_samples, widths[0]), widths[-1])


for _name, _samples, _widths in [
    ("narrow", 4000, (784, 50, 50, 10)),
    ("medium", 1024, (784, 1024, 1024, 10)),
    ("medium-2048", 2048, (784, 1024, 1024, 10)),
    ("wide", 512, (784, 4096, 4096, 10)),
    ("wide-2048", 2048, (784, 4096, 4096, 10)),
]:
    _text = f"MLP {'-'.join(map(str, _widths))}, N = {_samples}"
    _workload(_name, _text)(lambda n=_samples, widths=_widths: mlp(n, *widths))  # type: ignore[misc]


@_workload("cnn", "CNN 3-32-64-128, 3x3, 32x32 images, N = 256")
def _cnn() -> Problem:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels_in, channels_out in [(3, 32), (32, 64), (64, 128)]:
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _problem(nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10)), _normal(256, 3, 32, 32))


class _Block(nn.Module):
    """An encoder block whose attention is written with plain linear layers, which every tool can see."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).flatten(2))
        hidden: Tensor = self.feed_forward(self.norms[1](x))
        return x + hidden


class _Encoder(nn.Module):
    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.blocks = nn.Sequential(_Block(width, 4), _Block(width, 4))
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens).contiguous()
        pooled: Tensor = self.head(self.blocks(self.tokens(tokens) + self.positions(places)).mean(1))
        return pooled


@_workload("transformer", "2-layer encoder, d = 128, sequence 32, vocabulary 1000, N = 128")
def _transformer() -> Problem:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (128, 32), generator=torch.Generator().manual_seed(0))
    return _problem(_Encoder(1000, 32, 128), tokens)


@_workload("resnet18", "CIFAR ResNet-18 in evaluation mode, N = 64 (needs torchvision)")
def _resnet18() -> Problem:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return _problem(model, _normal(64, 3, 32, 32))
