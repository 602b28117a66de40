"""K in tiles against K at once: several tiles, several bands, layers with one and with many positions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sgdkern import tiled_gram
from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.streaming import StreamingGradients
from sgdkern.tiled_gram import TiledGram, cross_gram

LOSS = nn.CrossEntropyLoss()


def problem(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        model, inputs = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(50, 6)
    else:
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3, bias=False))
        inputs = torch.randn(50, 2, 5, 5)
    return model.double(), inputs.double(), torch.arange(50) % 3


@pytest.fixture(params=["linear", "convolution"])
def G(request: pytest.FixtureRequest) -> GradientMatrix:
    return per_sample_gradients(problem(request.param)[0], LOSS, *problem(request.param)[1:])


def test_cross_gram_is_a_block_of_the_gram_matrix(G: GradientMatrix) -> None:
    some, others = torch.tensor([3, 40, 7]), torch.arange(10, 30)
    found = cross_gram(G.select(some), G.select(others))
    torch.testing.assert_close(found, G.gram()[some][:, others], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("memory_bound", [1, 3000, 2**30])
@pytest.mark.parametrize("tile_rows", [7, 25, 64])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_products_whatever_the_tiles_the_bands_and_the_chunks(
    kind: str, tile_rows: int, memory_bound: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_gram, "TILE_ROWS", tile_rows)
    model, inputs, targets = problem(kind)
    G = per_sample_gradients(model, LOSS, inputs, targets)
    stream = StreamingGradients(model, LOSS, DataLoader(TensorDataset(inputs, targets), batch_size=11))
    vectors = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for source in (G, stream):
        found = TiledGram(source, tmp_path, memory_bound).product(vectors)
        torch.testing.assert_close(found, G.gram() @ vectors, rtol=1e-10, atol=1e-12)
    assert not list(tmp_path.iterdir())


def test_layers_that_meet_the_samples_differently():
    class Pooled(nn.Module):
        """A layer at several positions, one that the loss does not use, and one that is called twice."""

        def __init__(self):
            super().__init__()
            self.first, self.unused, self.twice = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 4)

        def forward(self, inputs):
            return self.twice(self.twice(self.first(inputs).tanh().mean(1)).tanh())

    torch.manual_seed(0)
    G = per_sample_gradients(Pooled(), nn.MSELoss(), torch.randn(7, 5, 3), torch.randn(7, 4))
    torch.testing.assert_close(cross_gram(G.select(range(3)), G.select(range(3, 7))), G.gram()[:3, 3:])
