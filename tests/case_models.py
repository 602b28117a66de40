"""Models as people write them: parameters shared, sliced, generated, transformed and met in unusual places."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Mixture(nn.Module):
    """Each token goes to two of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(tokens[rows]) * weights[rows, places, None])
        return out.view_as(x)


class Twins(nn.Module):
    """Both inputs go through one encoder as one batch of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        first, second = self.encoder(torch.cat([one, other])).chunk(2)
        return first * second


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.up, self.down = (nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (4,), (6,)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.up).tanh(), self.weight.t(), self.down)


class Flow(nn.Module):
    """A differential equation by midpoint steps of a learned length."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5))
        self.step = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + self.step * self.field(x + self.step * self.field(x) / 2)
        return x


class Collected(nn.Module):
    """Weights in a list, applied transposed; others in a dictionary, cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ParameterList([torch.randn(5, 5) for _ in range(2)])
        self.dict = nn.ParameterDict({"weight": torch.randn(8, 5), "bias": torch.randn(8)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.list:
            x = torch.tanh(x @ weight.mT) + x
        (one, other), (shift, further) = self.dict["weight"].chunk(2), self.dict["bias"].chunk(2)
        return F.linear(x, one, shift) * F.linear(x, other, further)


class Fourier(nn.Module):
    """Products in the frequency domain: with a gain, or with a kernel's transform."""

    def __init__(self, *, kernel: bool) -> None:
        super().__init__()
        self.kernel, self.weight = kernel, nn.Parameter(torch.randn(8 if kernel else 5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.fft.rfft(self.weight) if self.kernel else self.weight
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * gain, n=8))


class RecomputedTwice(nn.Module):
    """One checkpointed block at two places, and its weight at a third."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.between = nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(checkpoint(self.block, x, use_reentrant=False))
        return checkpoint(self.block, x, use_reentrant=False) + F.linear(x, self.block[0].weight)


class Generated(nn.Module):
    """Each sample has a weight of its own, which a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.bias = nn.Linear(4, 12), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("noi,ni->no", self.maker(x).view(-1, 3, 4), x) + self.bias


class Heated(nn.Module):
    """Attention by the fused product, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.heat = nn.Linear(8, 24), nn.Linear(8, 8), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inner(x).view(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query * self.heat.exp(), key, value, is_causal=True)
        return self.outer(found.transpose(1, 2).flatten(2))


class Standardised(nn.Conv2d):
    """Convolution with a standardised weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (self.weight.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(x, weight, self.bias, padding=1)


class Clusters(nn.Module):
    """The density of a mixture of normals with learned centres and widths."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.widths = nn.Parameter(torch.randn(3, 4)), nn.Parameter(0.3 * torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        distances = (x[:, None] - self.centres) * (-self.widths).exp()
        return -(distances.square().sum(-1) / 2 + self.widths.sum(-1)).logsumexp(1, keepdim=True)


class Codebook(nn.Module):
    """The nearest learned code, passed straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.codes, self.head = nn.Linear(5, 6), nn.Embedding(7, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        code = self.codes(torch.cdist(found.detach(), self.codes.weight.detach()).argmin(1))
        return self.head(found + (code - found).detach()) + (code - found.detach()).square().mean(1, keepdim=True)


class Chain(nn.Module):
    """The forward recursion of a chain with learned transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Linear(4, 3)
        self.move, self.start = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        emitted = self.emit(x)
        state = self.start + emitted[:, 0]
        for place in range(1, x.shape[1]):
            state = (state[:, :, None] + self.move).logsumexp(1) + emitted[:, place]
        return state.logsumexp(1, keepdim=True)


class Ragged(nn.Module):
    """One sample after the other, each with rows of its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([self.linear(x[n, :length]).tanh().sum(0) for n, length in enumerate(lengths.tolist())])


class Shut(nn.Module):
    """A branch behind a gate that training has not opened yet."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.gate, self.head = nn.Linear(5, 5), nn.Parameter(torch.zeros(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gate * self.branch(x).relu())


class CompiledInside(nn.Module):
    """A compiled module, and a compiled function, within an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), backend="eager")
        self.head, self.shift = nn.Linear(5, 2), nn.Parameter(torch.randn(2))
        self.function = torch.compile(lambda x: x.sin() * self.shift, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.head(self.inner(x)))


class Halved(nn.Module):
    """A hook halves the gradient on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: grad / 2)
        return self.head(hidden.tanh())
