"""Small models of every way in which users write them: tied, reused, functional, recurrent, routed, parametrised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Apply(nn.Module):
    """A module between two functions; first of several outputs."""

    def __init__(self, module, before=lambda x: x, after=lambda y: y):
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, *inputs):
        out = self.module(*[self.before(each) for each in inputs])
        return self.after(out[0] if isinstance(out, tuple) else out)


def sequence_first(module: nn.Module) -> nn.Module:
    """A module for [T, N, …] that is given [N, T, …]."""
    return Apply(module, lambda x: x.transpose(0, 1), lambda y: y.transpose(0, 1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.inner(self.embedding(tokens)).tanh())


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(5, 5), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        x = self.linear(self.linear(x).tanh())
        return self.conv(self.conv(x[:, None]).relu())[:, 0]


class Functional(nn.Module):
    """Weights of children used by functions: scaled, transposed, and by the child itself as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 5, bias=False)

    def forward(self, x):
        x = F.linear(F.linear(x, self.first.weight * 2, self.first.bias).tanh(), self.second.weight.t())
        return F.linear(x, self.third.weight.t()) + self.first(x)


class Bare(nn.Module):
    """Parameters of the model's own, in an einsum, under an exponential; one is never used."""

    def __init__(self):
        super().__init__()
        self.weight, self.log_scale = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return torch.einsum("ni,ij->nj", x, self.weight) * self.log_scale.exp()


class Heads(nn.Module):
    """A weight a head, in an einsum."""

    def __init__(self, equation: str, *shape: int):
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return torch.einsum(self.equation, x, self.weight)


class Experts(nn.Module):
    """A stack of weights in a batched product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, x):
        return torch.matmul(x, self.weight)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions)[:, 0]


class LoRA(nn.Module):
    def __init__(self, merged: bool):
        super().__init__()
        self.merged, self.base = merged, nn.Linear(6, 5).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        if self.merged:
            return F.linear(x, self.base.weight + 0.5 * self.up @ self.down, self.base.bias)
        return self.base(x) + (x @ self.down.T @ self.up.T) * 0.5


class GraphNetwork(nn.Module):
    """Messages along the edges of one graph, added up at their ends."""

    def __init__(self):
        super().__init__()
        self.message, self.readout = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 1]))
        self.register_buffer("target", torch.tensor([1, 2, 3, 0, 3]))

    def forward(self, x):
        messages = self.message(x)[:, self.source].relu()
        return self.readout(torch.zeros_like(x).index_add(1, self.target, messages)).mean(1)


class PhysicsInformed(nn.Module):
    """The residual of a differential equation: a derivative of the network is part of the loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.clone().requires_grad_()
        u = self.net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return du + u


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 6), nn.Linear(10, 4)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)

    def forward(self, tokens):
        return self.out(self.lstm(self.embedding(tokens))[0])


class Packed(nn.Module):
    def __init__(self, recurrent: nn.Module, enforce_sorted: bool = False):
        super().__init__()
        self.recurrent, self.enforce_sorted = recurrent, enforce_sorted

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=self.enforce_sorted
        )
        out, _ = self.recurrent(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0]


class Cells(nn.Module):
    """A cell called step by step."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = x.new_zeros(len(x), 4)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class LearnedState(nn.Module):
    """A recurrent layer that starts from a learned state."""

    def __init__(self):
        super().__init__()
        self.start, self.gru = nn.Parameter(torch.randn(1, 1, 4)), nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x, self.start.expand(-1, len(x), -1).contiguous())[0]


class Attention(nn.Module):
    def __init__(self, mask: str | None = None, **options):
        super().__init__()
        self.attention, self.mask = nn.MultiheadAttention(8, 2, **options), mask

    def forward(self, query, memory=None):
        memory = query if memory is None else memory
        length, batch_first = query.shape[1], self.attention.batch_first
        mask, padding = None, None
        if self.mask == "causal":
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.mask == "padding":
            padding = memory[..., 0] > 1
        if not batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        out = self.attention(query, memory, memory, attn_mask=mask, key_padding_mask=padding)[0]
        return out if batch_first else out.transpose(0, 1)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool = False):
        super().__init__()
        self.first, self.second, self.use_reentrant = nn.Linear(4, 5), nn.Linear(5, 4), use_reentrant

    def forward(self, x):
        block = lambda y: self.first(y).tanh()  # noqa: E731
        return self.second(checkpoint(block, x, use_reentrant=self.use_reentrant))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0)


class CustomFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(_Scale.apply(x, self.weight))


class Routed(nn.Module):
    """Each sample goes to one of two experts."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x):
        gate, out = self.gate(x).softmax(-1), torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            chosen = gate.argmax(-1) == place
            out[chosen] = expert(x[chosen]) * gate[chosen, place, None]
        return out


class FlatBag(nn.Module):
    """An embedding bag given by offsets."""

    def __init__(self, **options):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 3, **options)

    def forward(self, tokens):
        return self.bag(tokens.flatten(), torch.arange(0, tokens.numel(), tokens.shape[1]))


class WeightedBag(nn.Module):
    """An embedding bag with weights for its members, given by the samples or learned."""

    def __init__(self, learned: bool):
        super().__init__()
        self.bag, self.weights = nn.EmbeddingBag(9, 3, mode="sum"), nn.Parameter(torch.randn(4)) if learned else None

    def forward(self, tokens, weights):
        if self.weights is not None:
            weights = self.weights.expand(len(tokens), -1).contiguous()
        return self.bag(tokens, per_sample_weights=weights)


class Positions(nn.Module):
    """Token and learned position embeddings, whose indices are the same for all samples."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(11, 6), nn.Embedding(5, 6), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1])))


class Named(nn.Module):
    """Inputs by keyword, outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, *, left, right):
        return {"logits": self.left(left) + self.right(right), "features": left}


class Siamese(nn.Module):
    """One encoder for two inputs, put together along the batch axis."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, one, two):
        codes = self.encoder(torch.cat([one, two]))
        return (codes[: len(one)] - codes[len(one) :]).square()


class Video(nn.Module):
    """Frames of each sample through a 2-D network, folded into the batch axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        frames = self.conv(x.flatten(0, 1)).relu().mean((2, 3))
        return self.head(frames.unflatten(0, x.shape[:2]).mean(1))


class ComplexInside(nn.Module):
    """Real parameters, a complex signal in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(5, 2)

    def forward(self, x):
        return self.second(torch.fft.rfft(self.first(x)).abs())


class InPlace(nn.Module):
    """Activations that work in place on what a layer returned."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.first(x), inplace=True)
        x = self.second(x)
        x *= 2
        x = F.leaky_relu_(x, 0.1)
        return self.head(x.flatten(1)).add_(1)


class Broadcast(Tensor):
    """A subclass of Tensor as users make them."""


class SubclassedInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.as_subclass(Broadcast)).as_subclass(Tensor)
