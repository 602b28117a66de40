"""One table of models: every rule's own examples, every layer with its options, and real architectures."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from case_architectures import ARCHITECTURES
from case_models import (
    Autoencoder,
    Chain,
    Clusters,
    Codebook,
    Collected,
    CompiledInside,
    Flow,
    Fourier,
    Generated,
    Halved,
    Heated,
    Mixture,
    Ragged,
    RecomputedTwice,
    Shut,
    Standardised,
    Twins,
)
from case_modules import (
    Apply,
    Attention,
    Bare,
    Cells,
    Checkpointed,
    ClassToken,
    ComplexInside,
    CustomFunction,
    Experts,
    FlatBag,
    Functional,
    GraphNetwork,
    Heads,
    InPlace,
    LearnedState,
    LoRA,
    Named,
    Packed,
    PhysicsInformed,
    Positions,
    Reused,
    Routed,
    Siamese,
    SubclassedInput,
    Tagger,
    Tied,
    Video,
    WeightedBag,
    sequence_first,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sgdkern.layers import LAYERS

SEED = 3


def probing(outputs: Any) -> Tensor:
    """A loss with another gradient at every output, one number a sample."""
    if isinstance(outputs, tuple | list):
        outputs = outputs[0]
    flat = outputs.flatten(1) if outputs.dtype == torch.float64 else outputs.float().flatten(1)
    return (flat.sin() * torch.arange(flat.shape[1], dtype=flat.dtype).cos()).sum(1)


@dataclass(frozen=True)
class Case:
    """A model and its inputs, made anew under one seed at every call.

    Args:
        name: what the tests call it.
        make: the model and its inputs (a tuple of positional, or a dict of keyword arguments).
        loss: outputs to one loss a sample.
        explicit: names of the parameters that take the explicit route; all others must have factors.
        slow: whether it takes more than a few seconds.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    loss: Callable[[Any], Tensor] = probing
    explicit: tuple[str, ...] = ()
    slow: bool = False

    def made(self) -> tuple[nn.Module, Any]:
        """The model and its inputs, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.make()


def _registered() -> Iterator[Case]:
    """The examples of all rules."""
    seen = set()
    for layer in LAYERS.values():
        if layer.examples in seen:
            continue
        seen.add(layer.examples)
        for place in range(len(list(layer.examples()))):
            yield Case(f"{layer.name}-{place}", lambda layer=layer, place=place: _example(layer, place))


def _example(layer: Any, place: int) -> tuple[nn.Module, Any]:
    example = list(layer.examples())[place]
    return example.module, example.inputs


def case(name: str, build: Callable[[], nn.Module], *shapes: Any, **options: Any) -> Case:
    """A case whose inputs are standard normal of some shapes, or tensors made by functions."""

    def make() -> tuple[nn.Module, Any]:
        model = build()
        return model, tuple(torch.randn(shape) if isinstance(shape, tuple) else shape() for shape in shapes)

    return Case(name, make, **options)


def tokens(count: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, count, shape)


def lengths(*numbers: int) -> Callable[[], Tensor]:
    return lambda: torch.tensor(numbers)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():  # deprecated, and still used
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh()))


def named_inputs() -> tuple[nn.Module, Any]:
    return Named(), {"left": torch.randn(5, 4), "right": torch.randn(5, 2)}


def channels_last() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)).to(memory_format=torch.channels_last)
    return model, (torch.randn(5, 3, 6, 6).to(memory_format=torch.channels_last),)


def encoder(num_layers: int = 2, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)


ATTENTION = [
    case("attention-batch-first", lambda: Attention(batch_first=True), (4, 5, 8)),
    case("attention-sequence-first", lambda: Attention(), (4, 5, 8)),
    case("attention-square", lambda: Attention(), (5, 5, 8)),
    case("attention-cross", lambda: Attention(batch_first=True), (4, 5, 8), (4, 3, 8)),
    case("attention-separate", lambda: Attention(batch_first=True, kdim=6, vdim=6), (4, 5, 8), (4, 3, 6)),
    case("attention-bias-kv", lambda: Attention(batch_first=True, add_bias_kv=True), (4, 5, 8)),
    case("attention-zero", lambda: Attention(add_zero_attn=True), (4, 5, 8)),
    case("attention-no-bias", lambda: Attention(bias=False, batch_first=True), (4, 5, 8)),
    case("attention-causal", lambda: Attention("causal", batch_first=True), (4, 5, 8)),
    case("attention-padding", lambda: Attention("padding", batch_first=True), (4, 5, 8)),
    case("encoder-training", lambda: encoder(batch_first=True), (4, 5, 8)),
    case("encoder-evaluation", lambda: encoder(batch_first=True).eval(), (4, 5, 8)),
    case("encoder-norm-first", lambda: sequence_first(encoder(norm_first=True)), (4, 5, 8)),
    case("encoder-gelu", lambda: encoder(activation="gelu", batch_first=True, bias=False), (4, 5, 8)),
    case("decoder", lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval(), (4, 5, 8), (4, 3, 8)),
    case(
        "transformer",
        lambda: nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True),
        (4, 5, 8),
        (4, 3, 8),
    ),
    case("class-token", ClassToken, (4, 5, 8)),
]

RECURRENT = [
    case("lstm", lambda: nn.LSTM(4, 5, batch_first=True), (3, 6, 4)),
    case("lstm-sequence-first", lambda: sequence_first(nn.LSTM(4, 5, 2)), (3, 6, 4)),
    case("lstm-square", lambda: sequence_first(nn.LSTM(4, 4)), (4, 4, 4)),
    case("gru-layers", lambda: nn.GRU(4, 5, 2, batch_first=True), (3, 6, 4)),
    case("gru-bidirectional", lambda: sequence_first(nn.GRU(4, 5, bias=False, bidirectional=True)), (3, 6, 4)),
    case("rnn-relu", lambda: nn.RNN(4, 5, nonlinearity="relu", batch_first=True), (3, 6, 4)),
    case("rnn-tanh", lambda: nn.RNN(4, 5, 2, bidirectional=True, batch_first=True), (3, 6, 4)),
    case("lstm-last", lambda: Apply(nn.LSTM(4, 5, 2), lambda x: x.transpose(0, 1), lambda y: y[-1]), (3, 6, 4)),
    case("lstm-cell", lambda: Cells(nn.LSTMCell(3, 4)), (4, 5, 3)),
    case("gru-cell", lambda: Cells(nn.GRUCell(3, 4)), (4, 5, 3)),
    case("rnn-cell", lambda: Cells(nn.RNNCell(3, 4, nonlinearity="relu")), (4, 5, 3)),
    case("lstm-packed", lambda: Packed(nn.LSTM(4, 5)), (4, 6, 4), lengths(3, 6, 2, 5)),
    case("gru-packed", lambda: Packed(nn.GRU(4, 5, 2, bidirectional=True)), (4, 6, 4), lengths(3, 6, 2, 5)),
    case("rnn-packed-sorted", lambda: Packed(nn.RNN(4, 5), enforce_sorted=True), (4, 6, 4), lengths(6, 5, 5, 1)),
    case("gru-learned-state", LearnedState, (4, 5, 3), explicit=("start", "gru.weight_hh_l0", "gru.bias_hh_l0")),
    case("tagger", Tagger, tokens(20, 4, 6)),
]

SHARING = [
    case("tied", Tied, tokens(11, 5, 3)),
    case("tied-two-samples", Tied, tokens(11, 2, 3)),
    case("reused", Reused, (5, 5)),
    case("functional", Functional, (5, 5)),
    case("siamese", Siamese, (4, 4), (4, 4)),
    case("positions", Positions, tokens(11, 4, 5)),
    case("positions-square", Positions, tokens(11, 5, 5)),
    case("lora", lambda: LoRA(merged=False), (4, 6)),
    case("lora-merged", lambda: LoRA(merged=True), (4, 6)),
    case("weight-norm", lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU()), (5, 5)),
    case("weight-norm-conv", lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (5, 3, 5, 5)),
    case("spectral-norm", lambda: parametrizations.spectral_norm(nn.Linear(5, 4)).eval(), (5, 5)),
    case("orthogonal", lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (5, 4)),
    case("frozen", lambda: nn.Sequential(nn.Linear(5, 4).requires_grad_(False), nn.Linear(4, 3)), (4, 5)),
]

WAYS = [
    case("bare", Bare, (6, 5)),
    case("einsum-heads", lambda: Heads("nhi,hij->nhj", 2, 3, 4), (5, 2, 3)),
    case("einsum-sequence", lambda: Heads("ntd,dhk->nhtk", 4, 2, 3), (5, 6, 4)),
    case("einsum-ellipsis", lambda: Heads("...i,oi->...o", 4, 3), (5, 2, 3)),
    case("einsum-diagonal", lambda: Heads("ni,i->ni", 3), (5, 3)),
    case("einsum-summed", lambda: Heads("nti,ij->nj", 3, 2), (5, 4, 3)),
    case("batched-product", Experts, (5, 2, 6, 3)),
    case("graph-network", GraphNetwork, (5, 4, 4)),
    case("physics-informed", PhysicsInformed, (5, 1), explicit=("net.0.weight", "net.2.weight")),
    case("checkpointed", Checkpointed, (5, 4)),
    case("custom-function", CustomFunction, (5, 4), explicit=("weight",)),
    case("routed", Routed, (7, 4)),
    case("video", Video, (4, 3, 2, 5, 5)),
    case("in-place", InPlace, (5, 3, 5, 5)),
    case("complex-inside", ComplexInside, (4, 6)),
    case("tensor-subclass", SubclassedInput, (4, 4)),
    case("bag-offsets", FlatBag, tokens(9, 5, 4)),
    case("bag-offsets-last", lambda: FlatBag(mode="sum", padding_idx=2), tokens(9, 5, 4)),
    case("bag-max", lambda: FlatBag(mode="max"), tokens(9, 5, 4), explicit=("bag.weight",)),
    case("bag-weights", lambda: WeightedBag(learned=False), tokens(9, 5, 4), (5, 4)),
    case("bag-learned", lambda: WeightedBag(learned=True), tokens(9, 5, 4), (5, 4), explicit=("weights", "bag.weight")),
    Case("keywords", named_inputs, loss=lambda outputs: probing(outputs["logits"])),
    case("one-sample", perceptron, (1, 4)),
    Case("channels-last", channels_last),
    case("non-contiguous", lambda: nn.Linear(4, 3), lambda: torch.randn(4, 5).t()),
    case("double", lambda: perceptron().double(), lambda: torch.randn(5, 4, dtype=torch.float64)),
    case("bfloat16", lambda: perceptron().bfloat16(), lambda: torch.randn(5, 4).bfloat16()),
    case("float16", lambda: perceptron().half(), lambda: torch.randn(5, 4).half()),
    case(
        "convolutions",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(4, 6, 3, groups=2, padding="same")
        ),
        (4, 3, 4, 4),
    ),
    case("reflected", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (4, 3, 5, 5)),
    case("replicated", lambda: nn.Conv1d(3, 4, 3, padding=2, padding_mode="replicate", stride=2), (4, 3, 8)),
    case("scripted", scripted, (5, 4), explicit=("0.weight", "0.bias")),
]

MODELS = [
    case("mixture-of-experts", Mixture, (5, 3, 6)),
    case("twins", Twins, (5, 5), (5, 5)),
    case("autoencoder", Autoencoder, (5, 6)),
    case("flow", Flow, (5, 5)),
    case("collected", Collected, (5, 2, 5)),
    case("fourier-gain", lambda: Fourier(kernel=False), (5, 8), explicit=("weight",)),
    case("fourier-kernel", lambda: Fourier(kernel=True), (5, 8), explicit=("weight",)),
    case("recomputed-twice", RecomputedTwice, (5, 5)),
    case("generated", Generated, (5, 4)),
    case("heated", Heated, (4, 5, 8)),
    case("standardised", lambda: nn.Sequential(Standardised(3, 4, 3), nn.ReLU()), (4, 3, 5, 5)),
    case("clusters", Clusters, (6, 4)),
    case("codebook", Codebook, (6, 5)),
    case("chain", Chain, (5, 4, 4)),
    case("ragged", Ragged, (4, 5, 4), lengths(5, 1, 3, 2)),
    case("shut", Shut, (6, 5)),
    case("compiled-inside", CompiledInside, (5, 4)),
    case("halved", Halved, (5, 4)),
]

CASES = [
    *_registered(),
    *ATTENTION,
    *RECURRENT,
    *SHARING,
    *WAYS,
    *MODELS,
    *(Case(name, make, **options) for name, (make, options) in ARCHITECTURES.items()),
]


def parameters(cases: list[Case]) -> list[Any]:
    """The table for `pytest.mark.parametrize` and fixtures; slow cases are marked."""
    return [pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.slow else []) for each in cases]
