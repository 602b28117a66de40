"""K formed during the backward pass, in G's place (that it is G's K, on every model case: test_gradient_matrix)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sgdkern import ops
from sgdkern.capture import per_sample_gradients, posed
from sgdkern.footprint import footprint, pass_size
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import GramMatrix, gram_matrix
from sgdkern.order_parameters import order_parameters
from sgdkern.spectrum import noise_spectrum

GROUPS = torch.arange(60) % 3


def problem() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(60, 8, dtype=torch.float64), torch.randint(0, 4, (60,))


@pytest.fixture(scope="module")
def K() -> GramMatrix:
    return gram_matrix(*problem())


@pytest.fixture(scope="module")
def G() -> GradientMatrix:
    return per_sample_gradients(*problem())


def test_order_parameters_in_its_place(K: GramMatrix, G: GradientMatrix) -> None:
    """All of them, groups and R included; float64, so that only the order of sums differs."""
    found = order_parameters(K, batch_size=10, groups=GROUPS).as_dict()
    expected = order_parameters(G, batch_size=10, groups=GROUPS).as_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        pair = (torch.as_tensor(each, dtype=torch.float64) for each in (found[name], value))
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12, equal_nan=True, msg=name)


@pytest.mark.parametrize("options", [{}, {"num_eigenvalues": 3}, {"method": "gram", "energy": 0.5}])
def test_spectrum_in_its_place(K: GramMatrix, G: GradientMatrix, options: dict[str, object]) -> None:
    found, expected = noise_spectrum(K, batch_size=10, **options), noise_spectrum(G, batch_size=10, **options)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=1e-12)
    assert found.effective_dimension == expected.effective_dimension
    assert found.method == "gram"


def test_products_of_gradients_that_k_tells(K: GramMatrix, G: GradientMatrix) -> None:
    minibatches = torch.arange(60).view(6, 10)
    torch.testing.assert_close(K.minibatch_squared_norms(minibatches), G.minibatch_squared_norms(minibatches))
    torch.testing.assert_close(K.squared_norms(), G.squared_norms())
    torch.testing.assert_close(K.gram_matvec(torch.ones(60, 2)), G.gram_matvec(torch.ones(60, 2)))


def test_what_k_does_not_tell(K: GramMatrix) -> None:
    for ask in (K.mean, lambda: K.matvec(torch.ones(1)), lambda: K.rmatvec(torch.ones(1)), lambda: K.layers):
        with pytest.raises(TypeError, match=r"holds K = G Gᵀ alone.*per_sample_gradients"):
            ask()
    with pytest.raises(TypeError, match="covariance_matvec"):
        K.covariance_matvec(torch.ones(1))
    with pytest.raises(ValueError, match="iterates on the gradients"):
        noise_spectrum(K, method="lanczos")
    with pytest.raises(TypeError, match="holds K = G Gᵀ alone"):
        noise_spectrum(K, eigenvectors=True)


def test_large_outputs_run_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same K, losses and outputs; a model made for one batch size, or with random masks, runs whole."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 40, 3), nn.MaxPool2d(6), nn.Flatten(), nn.Linear(160, 4)
    ).double()
    batch = nn.CrossEntropyLoss(), torch.randn(50, 3, 14, 14, dtype=torch.float64), torch.randint(0, 4, (50,))
    expected = per_sample_gradients(model, *batch, chunk_size=50)
    assert pass_size(posed(model, *batch, None, None, None, None)) is None  # the largest output is 2.2 MiB
    monkeypatch.setattr("sgdkern.footprint.LARGE_OUTPUT", 2**20)
    monkeypatch.setattr("sgdkern.footprint.CHUNK_OUTPUT", 2**20)
    assert pass_size(posed(model, *batch, None, None, None, None)) == 17
    found = gram_matrix(model, *batch)
    torch.testing.assert_close(found.gram(), expected.gram())
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.outputs, expected.outputs)
    assert found.coverage == expected.coverage
    kept = per_sample_gradients(model, *batch)
    assert [type(entry.factors).__name__ for entry in kept.entries].count("Patches") < [
        type(entry.factors).__name__ for entry in expected.entries
    ].count("Patches")
    torch.testing.assert_close(kept.dense(), expected.dense())
    torch.testing.assert_close(kept.losses, expected.losses)
    assert kept.coverage == expected.coverage
    assert pass_size(posed(model, *batch, None, None, None, 7)) is None
    fixed = nn.Sequential(model, nn.Unflatten(0, (50, 1)), nn.Flatten())
    assert pass_size(posed(fixed, *batch, None, None, None, None)) is None
    torch.testing.assert_close(gram_matrix(fixed, *batch).gram(), expected.gram())
    wrong = batch[1].clone()
    wrong[31] = float("nan")
    with pytest.raises(RuntimeError, match=r"first: \[31\]"):
        gram_matrix(model, batch[0], wrong, batch[2])


def test_one_pass_over_images_keeps_the_fewest_numbers() -> None:
    """Gradients of a convolution with few weights, under the masks of the seed; factors where chunks are asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Conv2d(4, 64, 7), nn.Flatten(), nn.Linear(256, 4))
    batch = nn.CrossEntropyLoss(), torch.randn(6, 3, 10, 10), torch.arange(6) % 4
    kinds, expected = {}, per_sample_gradients(model, *batch, chunk_size=6, seed=3)
    for name, found in {"as asked": expected, "fewest": per_sample_gradients(model, *batch, seed=3)}.items():
        kinds[name] = sorted(type(entry.factors).__name__ for entry in found.entries)
        torch.testing.assert_close(found.dense(), expected.dense())
    assert kinds["as asked"].count("Patches") == 2
    assert kinds["fewest"].count("Patches") == 1


def test_scales_and_shifts_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the operation on narrow layers serves them all; with no room to wait each has its own."""
    calls, plain = [], ops.gram.overload
    monkeypatch.setattr(ops.gram, "overload", lambda *args: calls.append(len(args[0])) or plain(*args))
    layers = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.LayerNorm(6))]
    batch = nn.CrossEntropyLoss(), torch.randn(9, 6), torch.arange(9) % 4
    model = nn.Sequential(*layers)
    expected = gram_matrix(model, *batch).gram()
    calls.clear()
    torch.testing.assert_close(gram_matrix(model, *batch).gram(), expected)
    assert calls == [9]
    calls.clear()
    monkeypatch.setattr("sgdkern.gram_pass.WAITING_BYTES", 0)
    torch.testing.assert_close(gram_matrix(model, *batch).gram(), expected)
    assert len(calls) > 1


def test_no_chunk_is_a_single_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that squeezes its outputs has one axis less there."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 1)).double()
    model.forward = lambda x: nn.Sequential.forward(model, x).squeeze()  # type: ignore[method-assign]
    batch = nn.BCEWithLogitsLoss(), torch.randn(10, 1, 8, 8, dtype=torch.float64), torch.rand(10, dtype=torch.float64)
    expected = per_sample_gradients(model, *batch)
    monkeypatch.setattr("sgdkern.gram_pass.pass_size", lambda _: 3)
    torch.testing.assert_close(gram_matrix(model, *batch).gram(), expected.gram())
    with torch.inference_mode():
        torch.testing.assert_close(gram_matrix(model, *batch).gram(), expected.gram())


def test_outputs_of_another_form_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of [2, N, 4] are not put together along the first axis."""
    monkeypatch.setattr("sgdkern.footprint.LARGE_OUTPUT", 2**10)
    monkeypatch.setattr("sgdkern.footprint.CHUNK_OUTPUT", 2**12)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4))
    inputs, targets = torch.randn(60, 1, 8, 8), torch.arange(60) % 4
    loss = nn.CrossEntropyLoss(reduction="none")
    assert pass_size(posed(model, loss, inputs, targets, None, None, None, None)) is not None
    expected = per_sample_gradients(model, loss, inputs, targets, chunk_size=60).dense()
    returning_two = _Returning(model, lambda out: torch.stack([out, out]))
    batch = (lambda out, y: loss(out[0], y)), inputs, targets
    twice = per_sample_gradients(returning_two, *batch)
    assert twice.outputs is not None
    assert twice.outputs.shape == (2, 60, 4)
    torch.testing.assert_close(twice.dense(), expected)
    assert per_sample_gradients(returning_two, *batch, chunk_size=6).outputs is None


def test_chunks_warn_once_of_explicit_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples weighed before are studied before, too."""
    monkeypatch.setattr("sgdkern.footprint.LARGE_OUTPUT", 2**10)
    monkeypatch.setattr("sgdkern.footprint.CHUNK_OUTPUT", 2**13)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), _Distances())
    batch = nn.CrossEntropyLoss(), torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    with pytest.warns(UserWarning, match="3.centres") as told:
        per_sample_gradients(model, *batch)
    assert len(told) == 1
    gram_matrix(model, *batch)  # a warning would be an error here


class _Distances(nn.Module):
    """Of each sample from four centres."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 27))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cdist(inputs, self.centres)


class _Returning(nn.Module):
    """A model whose output is made something else."""

    def __init__(self, model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.change(self.model(inputs))


@pytest.mark.parametrize("size", [None, 7])
def test_losses_that_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """They are refused, also after the few samples that a footprint is taken from."""
    if size is not None:
        monkeypatch.setattr("sgdkern.gram_pass.pass_size", lambda problem: footprint(problem) and size)
    model, batch = nn.Linear(3, 2), (torch.randn(20, 3), torch.randn(20, 2))
    with pytest.raises(ValueError, match="divides by their number"):
        gram_matrix(model, lambda out, wanted: (out - wanted).square().sum(1) / len(out), *batch)


def test_unused_parameters_and_constant_losses() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    inputs = torch.randn(5, 3)
    found = gram_matrix(model, batch_loss=lambda m, x: m["used"](x).square().sum(1), batch=inputs)
    kept = per_sample_gradients(model, batch_loss=lambda m, x: m["used"](x).square().sum(1), batch=inputs)
    torch.testing.assert_close(found.gram(), kept.gram())
    assert found.coverage == kept.coverage
    nothing = gram_matrix(model, batch_loss=lambda m, x: (0 * m["used"](x)).sum(1), batch=inputs)
    assert not nothing.gram().any()


def test_gradients_that_are_not_finite_name_the_samples() -> None:
    model, loss, inputs, targets = problem()
    inputs = inputs.clone().requires_grad_(False)

    class Spiked(torch.autograd.Function):
        @staticmethod
        def forward(context: object, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(context: object, grads: torch.Tensor) -> torch.Tensor:
            grads = grads.clone()
            grads[-7:-6] = torch.nan if len(grads) > 7 else 0  # not among the few that a study looks at
            return grads

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return Spiked.apply(self.inner(values))

    with pytest.raises(RuntimeError, match=r"gradients must be finite.*first: \[53\]"):
        gram_matrix(Model(), loss, inputs, targets)


def test_explicit_gradients_that_are_not_finite_are_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.linear = nn.Parameter(torch.zeros(5)), nn.Linear(5, 3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            some, weight = values[:, :3], self.weight[:3]
            return self.linear(values) + torch.special.xlog1py(some, weight) + torch.hypot(some, weight)

    values = torch.randn(40, 5)
    values[7, :3] = 0  # not one of the samples that a study looks at
    with (
        pytest.warns(UserWarning, match="explicit per-sample gradients"),
        pytest.raises(RuntimeError, match=r"gradients must be finite.*weight.*first: \[7\]"),
    ):
        gram_matrix(Model(), nn.CrossEntropyLoss(), values, torch.arange(40) % 3)


def test_a_budget_without_factors() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.linear = nn.Parameter(torch.randn(4, 5)), nn.Linear(4, 3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.cdist(values, self.weight))

    torch.manual_seed(0)
    problem = Model(), nn.CrossEntropyLoss(), torch.randn(100, 5), torch.arange(100) % 3
    with pytest.warns(UserWarning, match="explicit per-sample gradients"):
        whole = gram_matrix(*problem, params=["weight"])
    tiled = gram_matrix(*problem, params=["weight"], memory_budget=2 * 4 * 100**2 + 6000)
    torch.testing.assert_close(tiled.gram(), whole.gram())


def test_seeded_masks_are_not_shared_between_threads() -> None:
    """The generators are the process's: every measurement gets its own masks, whoever else measures meanwhile."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Linear(30, 3)).train()
    inputs, targets = torch.randn(40, 6), torch.arange(40) % 3
    measure = lambda seed: gram_matrix(model, nn.CrossEntropyLoss(), inputs, targets, seed=seed).gram()  # noqa: E731
    seeds = list(range(2)) * 30
    alone = [measure(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for seed, found in zip(seeds, pool.map(measure, seeds), strict=True):
            assert torch.equal(found, alone[seed])


@pytest.mark.parametrize("chunks", [{}, {"chunk_size": 1}, {"chunk_size": 3}])
def test_losses_that_depend_on_the_batch_size_in_small_chunks(
    monkeypatch: pytest.MonkeyPatch, chunks: dict[str, int]
) -> None:
    """No more samples than the study compares would not tell; where few fit, more are run."""
    for module in ("capture", "gram_pass"):
        monkeypatch.setattr(f"sgdkern.{module}.pass_size", lambda problem: footprint(problem) and 3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4))
    batch = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    divided = lambda out, y: nn.functional.cross_entropy(out, y, reduction="none") / len(y)  # noqa: E731
    with pytest.raises(ValueError, match="divides by their number"):
        per_sample_gradients(model, divided, *batch, **chunks)
    if not chunks:
        with pytest.raises(ValueError, match="divides by their number"):
            gram_matrix(model, divided, *batch)
