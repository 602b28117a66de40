"""The registry of rules: names, examples, layouts, and the table in the documentation."""

from pathlib import Path

import pytest
import torch
from layer_table import table
from torch import nn

from sgdkern.layers import LAYERS, Layout, Scattered, Unsupported, layer
from sgdkern.layers.recurrent import CELLS


@pytest.mark.parametrize("rule", {rule.name: rule for rule in LAYERS.values()}.values(), ids=lambda rule: rule.name)
def test_every_rule_has_examples_and_a_formula(rule: object) -> None:
    examples = list(rule.examples())
    assert examples
    for example in examples:
        assert len({len(tensor) for tensor in example.inputs}) == 1, "the first axis is the sample"
    assert rule.rule.__doc__


def test_a_rule_without_examples_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="examples"):
        layer(torch.sin)  # type: ignore[call-arg]


def test_the_documented_table_is_that_of_the_registry() -> None:
    """`python tests/layer_table.py` writes it anew."""
    documented = (Path(__file__).parents[1] / "docs" / "layers.md").read_text(encoding="utf-8")
    assert documented == table()


@pytest.mark.parametrize(
    ("axis", "minor", "shape"),
    [(0, False, (3, 4)), (1, False, (2, 3, 4)), (0, False, (6, 4)), (0, True, (6, 4)), (1, True, (2, 6, 5))],
)
def test_layout(axis: int, minor: bool, shape: tuple[int, ...]) -> None:
    """Each sample's elements, wherever they are, come back under its number."""
    layout = Layout(3, axis, minor)
    positions = torch.arange(shape[axis])
    owners = positions % 3 if minor else positions // (shape[axis] // 3)
    tensor = owners.view(-1, *[1] * (len(shape) - axis - 1)).expand(shape)
    assert layout.fits(shape)
    split = layout.split(tensor)
    assert torch.equal(split, torch.arange(3).view(-1, *[1] * (split.ndim - 1)).expand(split.shape))
    assert layout.samples(tensor, len(shape) - axis - 1).shape == (
        3,
        tensor.numel() // 3 // torch.Size(shape[axis + 1 :]).numel(),
        *shape[axis + 1 :],
    )


def test_samples_along_a_feature() -> None:
    with pytest.raises(Unsupported, match="feature axis"):
        Layout(3, 1).samples(torch.zeros(2, 3), 1)


def test_scattered_rows() -> None:
    owners = torch.tensor([2, 0, 2, 2, 0])
    rows = torch.arange(10.0).view(5, 2)
    found = Scattered(3, owners).split(rows)
    expected = torch.zeros(3, 3, 2)
    expected[0, :2], expected[2] = rows[[1, 4]], rows[[0, 2, 3]]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("function", CELLS, ids=lambda function: function.__name__)
def test_recurrent_layers_written_out_are_the_fused_ones(function: object) -> None:
    """The decomposition's outputs and states are torch's own, in float64."""
    torch.manual_seed(0)
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
    name = function.__name__
    options = {"nonlinearity": name[4:]} if name.startswith("rnn") else {}
    model = kinds[name](3, 4, 2, bidirectional=True, batch_first=True, **options).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    expected, states = model(x)

    from sgdkern.layers import DECOMPOSITIONS

    zeros = torch.zeros(4, 5, 4, dtype=torch.float64)
    given = (zeros, zeros) if name == "lstm" else zeros
    found = DECOMPOSITIONS[function](x, given, model._flat_weights, True, 2, 0.0, False, True, True)
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)
    for one, other in zip(found[1:], states if isinstance(states, tuple) else (states,), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
