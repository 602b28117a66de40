"""Peak memory, measured in a process of its own for each model: never samples x parameters, and budgets are kept."""

import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sgdkern.capture import per_sample_gradients, posed
from sgdkern.footprint import Footprint, footprint
from sgdkern.gram_pass import _tiling, gram_matrix

_spec = importlib.util.spec_from_file_location("memory", Path(__file__).parents[1] / "benchmarks" / "memory.py")
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)

MODELS = {
    "perceptron": """
model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
inputs, targets = torch.randn(500, 784), torch.randint(0, 10, (500,))
""",
    "convolutional": """
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(),
    nn.Linear(512, 10),
)
inputs, targets = torch.randn(200, 3, 32, 32), torch.randint(0, 10, (200,))
""",
    "deep": """
layers = [layer for _ in range(24) for layer in (nn.Linear(512, 512), nn.ReLU())]
model = nn.Sequential(*layers, nn.Linear(512, 10))
inputs, targets = torch.randn(1500, 512), torch.randint(0, 10, (1500,))
""",
    "transformer": """
encoder = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
model = nn.Sequential(
    nn.Embedding(500, 64), nn.TransformerEncoder(encoder, 4), nn.Flatten(0, 1), nn.Linear(64, 500),
    nn.Unflatten(0, (-1, 32)), nn.Flatten(1), nn.Linear(16000, 10),
)
inputs, targets = torch.randint(0, 500, (128, 32)), torch.randint(0, 10, (128,))
""",
    "packed": """
class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.body = nn.LSTM(64, 64), nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 256))
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        lengths = (x[:, :, 0] != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        rows = self.body(self.rnn(packed)[0].data)
        padded, _ = nn.utils.rnn.pad_packed_sequence(packed._replace(data=rows), batch_first=True)
        return self.head(padded.sum(1))

model, inputs, targets = Packed(), torch.randn(256, 24, 64), torch.randint(0, 10, (256,))
inputs[torch.arange(24) >= torch.randint(12, 25, (256, 1))] = 0
""",
    "routed": """
class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(64, 4), nn.Linear(64, 10)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64)) for _ in range(4)
        )

    def forward(self, x):
        tokens = x.flatten(0, 1)
        gates, chosen = self.gate(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(tokens[rows]) * gates[rows, None])
        return self.head(out.view_as(x).mean(1))

model, inputs, targets = Routed(), torch.randn(400, 32, 64), torch.randint(0, 10, (400,))
""",
}
# The largest layer's inputs and output gradients, bytes a sample.
LARGEST_LAYER = {
    "perceptron": 4 * 2000,
    "convolutional": 4 * (32 + 64) * 1024,
    "deep": 4 * 1024,
    "transformer": 4 * 32 * (64 + 500),
    "packed": 4 * 24 * (1024 + 256),
    "routed": 4 * 32 * (64 + 512),  # all tokens of a sample may go to one expert
}
SCRIPT = """
import json, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from sgdkern.capture import per_sample_gradients, posed
from sgdkern.footprint import footprint
from sgdkern.gram_pass import _tiling, gram_matrix

torch.set_num_threads(1)
torch.manual_seed(0)
{model}
problem = model, nn.CrossEntropyLoss(), inputs, targets
few = model, nn.CrossEntropyLoss(), inputs[:3], targets[:3]
per_sample_gradients(*few).gram(), gram_matrix(*few)  # imports, and the study
weight = footprint(posed(*problem, None, None, None, None))
pass_of_a_quarter = weight.capture * len(inputs) // 4
outputs = 2 * weight.outputs * len(inputs)
budgets = dict(
    G=weight.factors * len(inputs) + outputs + pass_of_a_quarter, K=8 * len(inputs)**2 + outputs + pass_of_a_quarter
)

{peak}
works = dict(
    ordinary=lambda: nn.functional.cross_entropy(model(inputs), targets).backward(),
    G=lambda: per_sample_gradients(*problem).gram(),
    K=lambda: gram_matrix(*problem),
    G_in_budget=lambda: per_sample_gradients(*problem, memory_budget=budgets["G"]),
    K_in_budget=lambda: gram_matrix(*problem, memory_budget=budgets["K"]),
)
print(json.dumps({{
    **{{name: peak(work) for name, work in works.items()}},
    **{{name + "_budget": budget for name, budget in budgets.items()}},
    "factors": weight.factors * len(inputs), "num_params": sum(parameter.numel() for parameter in model.parameters()),
    "num_samples": len(inputs),
}}))
"""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "routed" else []) for name in MODELS]
LINUX = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
# The kernels' own buffers for models of these sizes, and what the interpreter does on the way.
SMALL = 16 * 2**20


@cache
def measured(model: str) -> dict[str, int]:
    """Bytes above the start at the peak of each work, budgets, P, and N."""
    return dict(memory.run(SCRIPT.format(model=MODELS[model], peak=memory.PEAK)))


@LINUX
@pytest.mark.parametrize("model", NAMES)
def test_peak_of_a_gradient_matrix(model: str) -> None:
    """An ordinary pass, the factors of all layers, their copy in the kernel's order, K and a chunk; never N x P."""
    found = measured(model)
    size = 4 * found["num_samples"] * found["num_params"]
    chunk = 64 * 2**20
    bound = max(found["ordinary"], found["factors"]) + found["factors"] + 4 * found["num_samples"] ** 2 + chunk
    assert found["G"] <= bound + SMALL
    assert size < 2**30 or found["G"] < size / 4


@LINUX
@pytest.mark.parametrize("model", NAMES)
def test_peak_of_a_gram_matrix(model: str) -> None:
    """Formed during the backward pass: above an ordinary one at most three times K and a layer's factors twice.

    K itself, a layer's part of it, and narrow layers that wait for each other up to the size of K; the factors, and
    their copy in the kernel's order.
    """
    found = measured(model)
    num_samples = found["num_samples"]
    bound = 3 * 4 * num_samples**2 + 2 * LARGEST_LAYER[model] * num_samples + SMALL
    assert found["K"] - found["ordinary"] <= bound


@LINUX
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("kind", ["G", "K"])
def test_a_memory_budget_is_kept(model: str, kind: str) -> None:
    found = measured(model)
    assert found[f"{kind}_in_budget"] <= found[f"{kind}_budget"] + SMALL


def test_budgets_that_hold_nothing() -> None:
    model, inputs, targets = nn.Linear(6, 2), torch.randn(50, 6), torch.zeros(50, dtype=torch.long)
    for function, words in ((per_sample_gradients, "the factors and outputs of all samples"), (gram_matrix, "K twice")):
        with pytest.raises(ValueError, match=f"memory_budget must hold {words}"):
            function(model, nn.CrossEntropyLoss(), inputs, targets, memory_budget=100)
    with pytest.raises(ValueError, match="got both"):
        per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets, memory_budget=10**9, chunk_size=3)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.35])
def test_a_gram_matrix_in_tiles_is_the_same(share: float) -> None:
    """However few samples the budget holds at a time; losses and outputs too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    inputs, targets = torch.randn(41, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (41,))
    problem = (model, nn.CrossEntropyLoss(), inputs, targets)
    whole = gram_matrix(*problem)
    weight = footprint(posed(*problem, None, None, None, None))
    tiled = gram_matrix(
        *problem, memory_budget=2 * (8 * 41**2 + 41 * weight.outputs) + int(share * 41 * weight.capture)
    )
    torch.testing.assert_close(tiled.gram(), whole.gram(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(tiled.losses, whole.losses)
    torch.testing.assert_close(tiled.outputs, whole.outputs)
    assert tiled.coverage == whole.coverage


def test_a_checkpoint_is_weighed_as_it_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpointed block at a time holds what all blocks hold at once without checkpoints."""

    class Blocks(nn.Module):
        def __init__(self, *, checkpointed: bool) -> None:
            super().__init__()
            self.checkpointed = checkpointed
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Sigmoid(), nn.Linear(512, 64)) for _ in range(6)
            )
            self.head = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
            return self.head(x)

    def weighed(model: nn.Module) -> Footprint:
        x, y = torch.randn(8, 64), torch.arange(8) % 3
        return footprint(posed(model, nn.CrossEntropyLoss(), x, y, None, None, None, None))

    plain, kept = weighed(Blocks(checkpointed=False)), weighed(Blocks(checkpointed=True))
    hidden, made = 4 * 512, 4 * (3 * 512 + 64)  # what GELU alone saves of a block; all that a block computes
    assert kept.factors == plain.factors
    assert plain.activations - kept.activations == 6 * hidden - made
    monkeypatch.setattr("sgdkern.footprint.TOP_HOOKS", None)  # a torch that does not tell
    assert kept.activations + 5 * made < weighed(Blocks(checkpointed=True)).activations < kept.activations + 7 * made


def test_random_layers_draw_the_same_masks_in_every_tile() -> None:
    """K in tiles is that of a G whose chunks are the tiles."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, 5)).double()
    problem = (model, nn.CrossEntropyLoss(), torch.randn(41, 20, dtype=torch.float64), torch.arange(41) % 5)
    weight = footprint(posed(*problem, None, None, None, 7))
    budget = 2 * (8 * 41**2 + 41 * weight.outputs) + 20 * weight.capture
    size, held = _tiling(posed(*problem, None, None, None, 7), budget)
    assert held * size < 41, "several bands, so that tiles are computed again"
    tiled = gram_matrix(*problem, memory_budget=budget, seed=7)
    chunked = per_sample_gradients(*problem, chunk_size=size, seed=7)
    torch.testing.assert_close(tiled.gram(), chunked.gram(), rtol=1e-12, atol=1e-14)
