"""A stream against the same gradients held at once: every product, every cache, and the memory bound."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sgdkern.capture import per_sample_gradients
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.order_parameters import order_parameters
from sgdkern.spectrum import noise_spectrum
from sgdkern.statistics import statistics
from sgdkern.streaming import StreamingGradients

N = 103
LOSS = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 5)).double()


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N, 12, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 5, (N,), generator=generator))


@pytest.fixture(scope="module")
def G(model: nn.Module, data: TensorDataset) -> GradientMatrix:
    return per_sample_gradients(model, LOSS, *data.tensors)


def close(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory_bound", [2**31, 30_000])
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("cache", [None, "memory", "folder"])
class TestProducts:
    @pytest.fixture
    def stream(
        self,
        model: nn.Module,
        data: TensorDataset,
        tmp_path: Path,
        cache: str | None,
        chunk_size: int | None,
        memory_bound: int,
    ) -> StreamingGradients:
        place = tmp_path if cache == "folder" else cache
        loader = DataLoader(data, batch_size=20)
        return StreamingGradients(model, LOSS, loader, cache=place, chunk_size=chunk_size, memory_bound=memory_bound)

    def test_shape_and_first_pass(self, stream: StreamingGradients, G: GradientMatrix) -> None:
        assert stream.shape == G.shape
        assert stream.num_passes == 1
        assert stream.parameters == dict(G.parameters)
        assert stream.dtype == G.dtype
        close(stream.losses, G.losses)
        close(stream.squared_norms(), G.squared_norms())
        close(stream.mean(), G.mean())
        assert stream.num_passes == 1

    def test_products(self, stream: StreamingGradients, G: GradientMatrix) -> None:
        generator = torch.Generator().manual_seed(2)
        v = torch.randn(G.num_params, 3, generator=generator, dtype=torch.float64)
        u = torch.randn(N, 3, generator=generator, dtype=torch.float64)
        for vectors in (v, v[:, 0]):
            close(stream.matvec(vectors), G.matvec(vectors))
            close(stream.covariance_matvec(vectors), G.covariance_matvec(vectors))
        for vectors in (u, u[:, 0]):
            close(stream.rmatvec(vectors), G.rmatvec(vectors))
            close(stream.gram_matvec(vectors), G.gram_matvec(vectors))

    def test_rows_and_minibatches(self, stream: StreamingGradients, G: GradientMatrix) -> None:
        indices = torch.tensor([99, 3, 3, 50])
        close(stream.select(indices).dense(), G.dense()[indices])
        mask = torch.arange(N) % 9 == 0
        close(stream.select(mask).dense(), G.dense()[mask])
        minibatches = torch.stack([
            torch.randperm(N, generator=torch.Generator().manual_seed(k))[:6] for k in range(40)
        ])
        truth = G.dense()[minibatches].mean(1).square().sum(1)
        close(stream.minibatch_squared_norms(minibatches), truth)

    def test_chunks_can_be_walked_through_again(self, stream: StreamingGradients, G: GradientMatrix) -> None:
        for _ in range(2):
            close(torch.cat([chunk.dense() for chunk in stream.chunks()]), G.dense())
        close(stream.gathered().gram(), G.gram())


@pytest.mark.parametrize(
    "options", [{"memory_bound": 10**7}, {"memory_bound": 240_000, "block_size": 8}, {"method": "lanczos"}]
)
def test_spectrum_of_a_stream(
    model: nn.Module, data: TensorDataset, G: GradientMatrix, options: dict[str, object]
) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    truth = noise_spectrum(G, batch_size=5, method="gram")
    found = noise_spectrum(stream, batch_size=5, **options)
    assert found.converged
    assert found.effective_dimension == truth.effective_dimension
    assert found.trace == pytest.approx(truth.trace, rel=1e-10)
    k = len(found.eigenvalues)
    np.testing.assert_allclose(found.eigenvalues.numpy(), truth.eigenvalues[:k].numpy(), rtol=1e-6, atol=1e-12)
    assert found.reason


def test_gram_matrix_in_a_file(model: nn.Module, data: TensorDataset, G: GradientMatrix, tmp_path: Path) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    truth = noise_spectrum(G, method="gram", energy=0.4)
    for source in (stream, G):
        found = noise_spectrum(source, energy=0.4, memory_bound=80_000, block_size=4, scratch=tmp_path)
        assert found.method == "gram"
        assert "file" in found.reason
        assert found.effective_dimension == truth.effective_dimension
    assert not list(tmp_path.iterdir())


def test_one_pass_a_block_where_parameters_are_few(model: nn.Module, data: TensorDataset) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20), params=["2.weight"])
    found = noise_spectrum(stream, method="lanczos", num_eigenvalues=3)
    assert "parameter space" in found.reason
    assert stream.num_passes == 1 + -(-found.num_matvecs // 16)


@pytest.mark.parametrize("num_passes", [1, 2, 4])
def test_randomised_keeps_its_passes_and_bounds_its_error(
    model: nn.Module, data: TensorDataset, G: GradientMatrix, num_passes: int
) -> None:
    truth = noise_spectrum(G, method="gram").eigenvalues
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    found = noise_spectrum(stream, method="randomised", num_passes=num_passes, num_eigenvalues=6)
    assert found.method == "randomised"
    assert found.num_matvecs <= num_passes * 9
    assert stream.num_passes <= 1 + 2 * num_passes
    assert (found.eigenvalues <= truth[:6] + 1e-12).all()
    gaps = (found.eigenvalues[:, None] - truth).abs().min(1).values
    assert (gaps <= found.residual_norms + 1e-12).all()


def test_more_passes_never_lose_what_fewer_found(model: nn.Module, data: TensorDataset, G: GradientMatrix) -> None:
    # The spaces are nested: from the same start, every eigenvalue grows towards its own, and its bound shrinks at last.
    truth = noise_spectrum(G, method="gram").eigenvalues
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20), cache="memory")
    options = {"method": "randomised", "num_eigenvalues": 6}
    found = [noise_spectrum(stream, num_passes=passes, **options) for passes in (1, 2, 3, 4, 6)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert (more.eigenvalues >= fewer.eigenvalues - 1e-12 * truth[0]).all()
        assert (more.eigenvalues <= truth[:6] + 1e-12).all()
    assert (found[-1].residual_norms < found[0].residual_norms).all()


def test_a_shuffling_loader_is_found_out(model: nn.Module, data: TensorDataset) -> None:
    loader = DataLoader(data, batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(0))
    stream = StreamingGradients(model, LOSS, loader)
    assert stream.num_samples == N
    with pytest.raises(ValueError, match="shuffle=False"):
        stream.matvec(stream.mean())


def test_a_shuffling_loader_is_found_out_where_all_losses_are_equal(data: TensorDataset) -> None:
    # A last layer that starts at zero: every loss is log 5, and the gradients differ.
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 5)).double()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20, shuffle=True))
    with pytest.raises(ValueError, match="shuffle=False"):
        stream.rmatvec(torch.ones(N, dtype=torch.float64))


def test_random_mirroring_is_found_out_where_all_losses_are_equal(data: TensorDataset) -> None:
    model = nn.Linear(12, 5).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    class Mirrored:
        passes = 0

        def __iter__(self):
            self.passes += 1
            inputs, targets = data.tensors
            yield (inputs if self.passes == 1 else inputs.flip(1)), targets

    with pytest.raises(ValueError, match="augmentation"):
        StreamingGradients(model, LOSS, Mirrored()).rmatvec(torch.ones(N, dtype=torch.float64))


def test_the_order_of_integers_is_recognised_too() -> None:
    model = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(12, 5))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randint(0, 30, (40, 3), generator=generator), torch.arange(40) % 5)
    steady = StreamingGradients(model, LOSS, DataLoader(data, batch_size=16, drop_last=True))
    assert steady.rmatvec(torch.ones(32)).shape == (steady.num_params,)
    shuffled = StreamingGradients(model, LOSS, DataLoader(data, batch_size=16, shuffle=True, drop_last=True))
    with pytest.raises(ValueError, match="shuffle=False"):
        shuffled.rmatvec(torch.ones(32))


def test_mirrored_integers_are_found_out() -> None:
    """Their plain sum is the same, and so are all losses."""
    model = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(12, 5))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)

    class Mirrored:
        passes = 0

        def __iter__(self):
            self.passes += 1
            tokens = torch.arange(30).view(10, 3)
            yield (tokens if self.passes == 1 else tokens.flip(1)), torch.arange(10) % 5

    with pytest.raises(ValueError, match="augmentation"):
        StreamingGradients(model, LOSS, Mirrored()).rmatvec(torch.ones(10))


def test_a_shuffling_loader_is_harmless_once_cached(model: nn.Module, data: TensorDataset) -> None:
    loader = DataLoader(data, batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(0))
    stream = StreamingGradients(model, LOSS, loader, cache="memory")
    close(stream.matvec(stream.mean()).mean(), stream.mean().square().sum())


def test_a_changed_model_is_found_out(model: nn.Module, data: TensorDataset) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    assert stream.num_samples == N
    with torch.no_grad():
        model[0].weight.mul_(2)
    try:
        with pytest.raises(ValueError, match="leave the model"):
            stream.matvec(stream.mean())
    finally:
        with torch.no_grad():
            model[0].weight.div_(2)


def test_a_loader_that_changes_its_length_is_found_out(model: nn.Module, data: TensorDataset) -> None:
    batches = [(data.tensors[0][:20], data.tensors[1][:20]), (data.tensors[0][20:], data.tensors[1][20:])]
    stream = StreamingGradients(model, LOSS, batches)
    assert stream.num_samples == N
    batches.pop()
    with pytest.raises(ValueError, match="instead of 103"):
        stream.matvec(stream.mean())


def test_what_does_not_fit_is_refused(model: nn.Module, data: TensorDataset) -> None:
    with pytest.raises(TypeError, match="re-iterable"):
        StreamingGradients(model, LOSS, iter(DataLoader(data)))
    with pytest.raises(ValueError, match="at least one batch"):
        _ = StreamingGradients(model, LOSS, []).num_samples
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    with pytest.raises(ValueError, match="N = 103"):
        stream.rmatvec(torch.zeros(5))


def test_progress_and_restriction(model: nn.Module, data: TensorDataset) -> None:
    seen: list[tuple[int, int, int | None]] = []
    stream = StreamingGradients(
        model, LOSS, DataLoader(data, batch_size=50), params=["2.weight"], progress=lambda *news: seen.append(news)
    )
    assert stream.num_params == 50
    stream.matvec(stream.mean())
    assert seen == [(1, 50, None), (1, 100, None), (1, 103, None), (2, 50, 103), (2, 100, 103), (2, 103, 103)]


def test_a_batch_loss(model: nn.Module, data: TensorDataset, G: GradientMatrix) -> None:
    batches = [{"x": data.tensors[0][k : k + 30], "y": data.tensors[1][k : k + 30]} for k in range(0, N, 30)]
    stream = StreamingGradients(
        model,
        None,
        batches,
        chunk_size=11,
        batch_loss=lambda module, batch: nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none"),
    )
    close(stream.mean(), G.mean())


def test_order_parameters_of_a_stream(model: nn.Module, data: TensorDataset, G: GradientMatrix) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    groups = data.tensors[1] % 2
    found, truth = (
        order_parameters(source, batch_size=10, groups=groups, generator=torch.Generator().manual_seed(0)).as_dict()
        for source in (stream, G)
    )
    for name in ("A", "A0", "D", "D_par", "A_perp", "sigma_lambda2", "noise_scale", "R", "A0_0", "A0_1"):
        assert found[name] == pytest.approx(truth[name], rel=1e-8), name


def test_statistics_of_a_stream_take_two_passes(model: nn.Module, data: TensorDataset) -> None:
    stream = StreamingGradients(model, LOSS, DataLoader(data, batch_size=20))
    statistics(stream)
    assert stream.num_passes == 2  # the mean gradient is known from the first


# 16,000 samples whose factors would take 71 MiB, in a process that may take 48 MiB of addresses more than it has after
# its first chunk.
UNDER_A_LIMIT = """
import resource, sys
import torch
from torch import nn
from sgdkern.spectrum import noise_spectrum
from sgdkern.statistics import statistics
from sgdkern.streaming import StreamingGradients

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))

class Batches:
    def __init__(self, count):
        self.count = count
    def __iter__(self):
        for seed in range(self.count):
            generator = torch.Generator().manual_seed(seed)
            yield torch.randn(500, 1024, generator=generator), torch.randint(0, 10, (500,), generator=generator)

options = dict(num_eigenvalues=3, method="randomised", num_passes=1, block_size=8, memory_bound=2**24)
noise_spectrum(StreamingGradients(model, nn.CrossEntropyLoss(), Batches(1), memory_bound=2**24), **options)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 3 * 2**24
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for cache in (None, "memory", sys.argv[1]):
    stream = StreamingGradients(model, nn.CrossEntropyLoss(), Batches(32), cache=cache, memory_bound=2**24)
    found = noise_spectrum(stream, **options)
    assert stream.num_samples == 16_000 and stream.factor_bytes > 2**26, stream.factor_bytes
    assert float(stream.squared_norms().mean()) > found.trace > float(found.eigenvalues.sum()) > 0
try:
    stream.gathered()
except (RuntimeError, OSError) as error:
    assert "memory" in str(error), error
else:
    raise AssertionError("the limit is too loose to show anything")
print("kept")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space in use is read from /proc")
def test_the_memory_bound_is_kept_under_a_hard_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "kept", done.stderr


def test_autocast_is_the_models_alone() -> None:
    """Σ v along a mean gradient that is ten times the noise, where 16 bits of ḡ · v would leave nothing of it."""
    rows = 1 + 0.1 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    batches = [(rows, torch.zeros(64))]
    stream = StreamingGradients(
        nn.Linear(200, 1, bias=False), lambda outputs, _: outputs[:, 0], batches, cache="memory"
    )
    direction = stream.mean()
    expected = stream.covariance_matvec(direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(stream.covariance_matvec(direction), expected)
