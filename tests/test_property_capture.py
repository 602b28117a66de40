"""Layers with any options and shapes that torch takes, against autograd sample by sample in float64."""

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracles import called, per_sample_gradients
from torch import Tensor, nn

from sgdkern.capture import per_sample_gradients as captured

settings.register_profile(
    "capture", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
small = st.integers(1, 4)
CONVOLUTIONS = [[nn.Conv1d, nn.Conv2d, nn.Conv3d], [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]]


def loss(outputs: Any, _: Any = None) -> Tensor:
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    flat = outputs.reshape(len(outputs), -1)
    return (flat.sin() * torch.arange(flat.shape[1], dtype=flat.dtype).cos()).sum(1)


def check(model: nn.Module, *inputs: Tensor) -> None:
    """G and K are those of the loop, to float64 rounding."""
    model = model.double()
    num_samples = len(inputs[0])
    truth = per_sample_gradients(model, inputs, loss, num_samples)
    G = captured(model, loss, inputs, torch.zeros(num_samples))
    rounding = 1e-12 * (1 + truth.norm())
    assert (G.dense() - truth).norm() <= rounding
    assert (G.gram() - truth @ truth.T).norm() <= rounding * (1 + truth.norm())
    assert (G.squared_norms() - truth.square().sum(1)).norm() <= rounding * (1 + truth.norm())
    assert all(route.startswith(("factors", "no gradient")) for route in G.coverage.values())


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@settings.get_profile("capture")
@given(st.integers(1, 6), st.lists(small, max_size=3), small, small, st.booleans())
def test_linear(num_samples: int, leading: list[int], inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    check(nn.Linear(inputs, outputs, bias=bias), normal(num_samples, *leading, inputs))


@settings.get_profile("capture")
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    dims, transposed = data.draw(st.integers(1, 3), "dims"), data.draw(st.booleans(), "transposed")
    groups = data.draw(st.integers(1, 2), "groups")

    def axis(low: int, high: int, label: str) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims), label))

    options: dict[str, Any] = {
        "stride": axis(1, 3, "stride"),
        "dilation": axis(1, 2, "dilation"),
        "groups": groups,
        "bias": data.draw(st.booleans(), "bias"),
    }
    if transposed:
        options["padding"] = axis(0, 1, "padding")
    elif max(options["stride"]) == 1 and data.draw(st.booleans(), "same"):
        options["padding"] = "same"
    else:
        options["padding"] = axis(0, 2, "padding")
        options["padding_mode"] = data.draw(st.sampled_from(["zeros", "circular", "replicate", "reflect"]), "mode")
    torch.manual_seed(0)
    kernel = axis(1, 3, "kernel")
    model = CONVOLUTIONS[transposed][dims - 1](2 * groups, groups * data.draw(small, "outputs"), kernel, **options)
    x = normal(data.draw(st.integers(1, 4), "samples"), 2 * groups, *axis(4, 6, "size"))
    try:
        outputs = called(model.double(), (x,))
    except RuntimeError:  # a kernel larger than its input
        assume(False)
    assume(outputs.numel())
    check(model, x)


@settings.get_profile("capture")
@given(
    st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    st.integers(1, 4),
    st.integers(1, 5),
    small,
    small,
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
)
def test_recurrent(
    kind: Any,
    num_samples: int,
    length: int,
    inputs: int,
    hidden: int,
    layers: int,
    bias: bool,
    both: bool,
) -> None:
    torch.manual_seed(0)
    model = kind(inputs, hidden, layers, bias=bias, bidirectional=both, batch_first=True)
    check(model, normal(num_samples, length, inputs))


@settings.get_profile("capture")
@given(st.integers(1, 5), st.lists(small, max_size=2), st.integers(2, 6), small, st.booleans())
def test_embedding(num_samples: int, leading: list[int], count: int, width: int, padding: bool) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, count, (num_samples, *leading), generator=torch.Generator().manual_seed(2))
    check(nn.Embedding(count, width, padding_idx=0 if padding else None), tokens)


@settings.get_profile("capture")
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["sum", "mean"]), st.booleans())
def test_embedding_bag(num_samples: int, length: int, mode: str, padding: bool) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 6, (num_samples, length), generator=torch.Generator().manual_seed(2))
    check(nn.EmbeddingBag(6, 3, mode=mode, padding_idx=0 if padding else None), tokens)


@settings.get_profile("capture")
@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_attention(num_samples: int, length: int, heads: int, bias: bool, bias_kv: bool, zero: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(
        4 * heads, heads, bias=bias, add_bias_kv=bias_kv, add_zero_attn=zero, batch_first=True
    )
    query, memory = normal(num_samples, length, 4 * heads), normal(num_samples, length + 1, 4 * heads)
    check(model, query, memory, memory)


@settings.get_profile("capture")
@given(
    st.integers(1, 5),
    st.lists(small, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["layer", "rms", "group", "instance", "batch"]),
)
def test_normalisations(num_samples: int, trailing: list[int], affine: bool, kind: str) -> None:
    torch.manual_seed(0)
    spatial = [size + 1 for size in trailing]
    shape = (num_samples, 4, *spatial)
    if kind in ("layer", "rms"):
        model: nn.Module = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind](spatial)
    elif kind == "group":
        model = nn.GroupNorm(2, 4)
    else:
        families = {
            "instance": [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d],
            "batch": [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d],
        }
        model = families[kind][len(spatial) - 1](4, affine=True).eval()
    check(nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Flatten(1, 2), model) if affine else model, normal(*shape))


@settings.get_profile("capture")
@given(st.data())
def test_products_over_named_axes(data: st.DataObject) -> None:
    """Any product of the samples with one weight, written as an einsum."""
    shared, ins, outs, heads = (data.draw(st.integers(0, 2), label) for label in ("shared", "ins", "outs", "heads"))
    assume(ins + outs + heads)
    shared_axes, in_axes, out_axes, head_axes = "stuv"[:shared], "ij"[:ins], "op"[:outs], "hk"[:heads]
    sizes = dict(zip("nstuvijophk", (3, 2, 3, 2, 2, 2, 3, 2, 3, 2, 2), strict=True))
    x = "n" + "".join(data.draw(st.permutations(shared_axes + in_axes + head_axes), "x"))
    w = "".join(data.draw(st.permutations(in_axes + out_axes + head_axes), "w"))
    y = "n" + "".join(data.draw(st.permutations(shared_axes + out_axes + head_axes), "y"))

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(*(sizes[axis] for axis in w)))

        def forward(self, samples: Tensor) -> Tensor:
            return torch.einsum(f"{x},{w}->{y}", samples, self.weight)

    check(Product(), normal(*(sizes[axis] for axis in x)))
