"""What has no per-sample gradients is refused, with the reason and what to do, and the model is left as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from case_modules import Checkpointed
from snapshot import Snapshot
from torch import Tensor, nn

import sgdkern.explicit
from sgdkern.capture import per_sample_gradients
from sgdkern.gram_pass import gram_matrix
from sgdkern.verification import verify
from sgdkern.watching import watch

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3))


def refused(error: type[Exception], pattern: str, model: nn.Module, *arguments: Any, **options: Any) -> None:
    """Both calls raise an error with this text that begins with their own name, and change nothing."""
    before = Snapshot(model, seeded_grads=True)
    functions = (per_sample_gradients,) if "chunk_size" in options else (per_sample_gradients, gram_matrix)
    for function in functions:
        with pytest.raises(error, match=pattern) as caught:
            function(model, *arguments, **options)
        name = str(caught.value).partition(":")[0]
        assert name in (function.__name__, "params", "unreduced")
        assert before.changes() == []


class TestCoupledSamples:
    @pytest.mark.parametrize("norm", [nn.BatchNorm1d(5), nn.BatchNorm1d(5, track_running_stats=False)])
    def test_batch_norm_in_training_mode(self, norm: nn.Module) -> None:
        refused(ValueError, r"batch.*model\.eval\(\)", network(norm), CROSS_ENTROPY, X, Y)

    def test_batch_norm_on_a_few_samples_is_named(self) -> None:
        refused(
            ValueError,
            r"samples must not be coupled.*\['1'\].*model\.eval\(\)",
            network(nn.BatchNorm1d(5)),
            CROSS_ENTROPY,
            X[:3],
            Y[:3],
        )

    def test_batch_statistics_of_the_user(self) -> None:
        class Whitened(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x - x.mean(0)

        refused(ValueError, "must not", network(Whitened()), CROSS_ENTROPY, X[:3], Y[:3])
        refused(ValueError, "depends on other samples", network(Whitened()), CROSS_ENTROPY, X, Y)

    def test_contrastive_loss(self) -> None:
        def contrastive(outputs: Tensor, _: Tensor) -> Tensor:
            return -(outputs @ outputs.T).log_softmax(1).diagonal()

        refused(ValueError, "mixes samples", network(), contrastive, X, Y)
        refused(ValueError, "mixes samples", network(), contrastive, X[:3], Y[:3])

    def test_loss_divided_by_the_batch(self) -> None:
        def shared(outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets, reduction="none") / len(targets)

        refused(ValueError, r"divides by their number", network(), shared, X, Y)

    def test_gradient_scaled_by_frequency(self) -> None:
        model = nn.Sequential(nn.Embedding(9, 3, scale_grad_by_freq=True), nn.Flatten())
        refused(
            ValueError, "Set scale_grad_by_freq=False", model, lambda out, _: out.sum(1), torch.arange(6)[:, None], Y
        )


class TestRandomness:
    def test_dropout_without_a_seed(self) -> None:
        refused(
            ValueError,
            r"\['1'\]\)\. Call model\.eval\(\), or pass seed=",
            network(nn.Dropout(0.5)),
            CROSS_ENTROPY,
            X,
            Y,
        )

    def test_noise_of_the_user(self) -> None:
        class Noisy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + torch.randn_like(x)

        refused(ValueError, r"unknown\)\. Call model\.eval\(\), or pass seed=", network(Noisy()), CROSS_ENTROPY, X, Y)

    def test_seed_fixes_one_draw(self) -> None:
        model = network(nn.Dropout(0.5))
        before = Snapshot(model)
        one, two, other = (per_sample_gradients(model, CROSS_ENTROPY, X, Y, seed=seed).dense() for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert before.changes() == []

    def test_seeded_draw_is_a_true_gradient(self) -> None:
        model = network(nn.Dropout(0.5))
        G = per_sample_gradients(model, CROSS_ENTROPY, X, Y, seed=1)
        torch.manual_seed(1)
        CROSS_ENTROPY(model(X), Y).backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        torch.testing.assert_close(G.mean(), expected)

    def test_seed_with_explicit_gradients(self) -> None:
        class Powered(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.power = nn.Parameter(torch.rand(5) + 1)

            def forward(self, x: Tensor) -> Tensor:
                return x.abs() ** self.power

        refused(
            Exception,
            r"random layers cannot be repeated.*\['1\.power'\].*Call model\.eval\(\)",
            network(Powered(), nn.Dropout()),
            CROSS_ENTROPY,
            X,
            Y,
            seed=1,
        )


class TestArguments:
    def test_no_module(self) -> None:
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
            per_sample_gradients(lambda x: x, CROSS_ENTROPY, X, Y)  # type: ignore[arg-type]

    def test_no_loss(self) -> None:
        refused(TypeError, "loss_fn .* or batch_loss .* must be given", network())

    def test_loss_that_is_no_function(self) -> None:
        refused(TypeError, "loss module or a function", network(), "cross_entropy", X, Y)

    def test_no_samples(self) -> None:
        refused(ValueError, "at least one sample is needed", network(), CROSS_ENTROPY, X[:0], Y[:0])

    def test_lengths_that_differ(self) -> None:
        refused(ValueError, r"got lengths \[4, 6\].*by a closure", network(), CROSS_ENTROPY, X, Y[:4])

    def test_unknown_parameters(self) -> None:
        refused(
            ValueError,
            r"got \['0\.wieght'\]\. The model has \['0\.weight', ",
            network(),
            CROSS_ENTROPY,
            X,
            Y,
            params=["0.wieght"],
        )

    @pytest.mark.parametrize("params", [[], lambda name: False])
    def test_no_parameters(self, params: Any) -> None:
        refused(
            ValueError,
            r"at least one parameter.*Check requires_grad and params=",
            network(),
            CROSS_ENTROPY,
            X,
            Y,
            params=params,
        )

    def test_all_frozen(self) -> None:
        refused(
            ValueError,
            r"at least one parameter.*Check requires_grad",
            network().requires_grad_(False),
            CROSS_ENTROPY,
            X,
            Y,
        )

    def test_complex_parameters(self) -> None:
        model = nn.Linear(4, 3, dtype=torch.complex64)
        refused(
            ValueError,
            r"must be real, got torch\.complex64 for 'weight'\. Leave it out by params=",
            model,
            lambda out, _: out.abs().sum(1),
            X,
            Y,
        )

    def test_uninitialised_parameters(self) -> None:
        with pytest.raises(ValueError, match="forward pass"):
            per_sample_gradients(nn.LazyLinear(3), CROSS_ENTROPY, X, Y)

    @pytest.mark.parametrize("chunk_size", [0, -1])
    def test_chunk_size(self, chunk_size: int) -> None:
        refused(
            ValueError,
            f"chunk_size must be at least 1, got {chunk_size}",
            network(),
            CROSS_ENTROPY,
            X,
            Y,
            chunk_size=chunk_size,
        )

    def test_scalar_loss_of_the_user(self) -> None:
        loss = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) * 2  # noqa: E731
        refused(
            ValueError,
            r"must return one loss a sample, \[N\], got shape \[\]\. Drop its reduction",
            network(),
            loss,
            X,
            Y,
        )

    def test_integer_loss(self) -> None:
        refused(ValueError, "losses must be floating point", network(), lambda out, y: out.argmax(1), X, Y)

    def test_scalar_batch_loss(self) -> None:
        loss = lambda model, batch: CROSS_ENTROPY(model(batch[0]), batch[1])  # noqa: E731
        refused(ValueError, r"one number a sample, \[6\], got \[\]", network(), batch_loss=loss, batch=(X, Y))

    def test_detached_loss(self) -> None:
        refused(ValueError, "autograd graph", network(), lambda out, y: out.detach().sum(1), X, Y)


class TestHooks:
    """Hooks of the user that change gradients by more than a factor: the reason is not that samples are coupled."""

    @pytest.mark.parametrize("clip", [torch.sign, lambda grad: grad.clamp(-0.01, 0.01), lambda grad: grad.clamp(-1, 0)])
    def test_on_a_tensor_in_forward(self, clip: Callable[[Tensor], Tensor]) -> None:
        class Clipped(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                x.register_hook(clip)
                return x.sin()

        refused(ValueError, r"backward hooks.*\['a tensor in forward'\]", network(Clipped()), CROSS_ENTROPY, X, Y)

    def test_on_a_module(self) -> None:
        model = network(nn.Tanh())
        model[1].register_full_backward_hook(lambda module, inputs, outputs: (inputs[0].clamp(-0.01, 0.01),))
        refused(ValueError, r"backward hooks must.*\['1'\].*Remove the hooks", model, CROSS_ENTROPY, X, Y)

    def test_on_a_parameter(self) -> None:
        model = network()
        model[0].weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
        refused(RuntimeError, r"Hooks on \['0\.weight'\] change their gradients: remove", model, CROSS_ENTROPY, X, Y)

    def test_a_mask_on_a_parameter_is_no_reason_to_refuse(self) -> None:
        model, mask = network(), torch.arange(20).view(5, 4) % 3 == 0
        expected = per_sample_gradients(model, CROSS_ENTROPY, X, Y).dense()
        expected[:, :20] *= mask.flatten()
        model[0].weight.register_hook(lambda grad: grad * mask)
        with pytest.warns(UserWarning, match=r"0\.weight \(a hook changes its gradient\)"):
            found = per_sample_gradients(model, CROSS_ENTROPY, X, Y)
        torch.testing.assert_close(found.dense(), expected)


def test_errors_begin_with_what_was_called() -> None:
    coupled = network(nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match=r"^verify: samples must not be coupled"):
        verify(coupled, CROSS_ENTROPY, X, Y)
    with watch(coupled, CROSS_ENTROPY, every=1), pytest.raises(ValueError, match=r"^watch: samples must not be"):
        CROSS_ENTROPY(coupled(X), Y).backward()
    with pytest.raises(TypeError, match=r"^watch: model must be a torch\.nn\.Module"):
        watch(lambda x: x, CROSS_ENTROPY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^per_sample_gradients: samples"):
        per_sample_gradients(coupled, CROSS_ENTROPY, X, Y)


class TestNonFinite:
    def test_loss(self) -> None:
        x = X.clone()
        x[2] = torch.inf
        refused(
            RuntimeError,
            r"losses must be finite.*first: \[2\].*lower the learning rate",
            network(),
            CROSS_ENTROPY,
            x,
            Y,
        )

    def test_gradient(self) -> None:
        class Root(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (x * torch.arange(6)[:, None].clamp_max(1)).sqrt() if len(x) == 6 else x.sqrt()

        loss = lambda outputs, _: (outputs - outputs.detach()).abs().sqrt().sum(1)  # noqa: E731
        refused(RuntimeError, r"gradients must be finite, but those at .*first: \[0", network(), loss, X, Y)


class TestWrites:
    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("module", [nn.Embedding, nn.EmbeddingBag])
    def test_max_norm(self, module: Callable[..., nn.Module], frozen: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(module(9, 3, max_norm=0.5), nn.Flatten(), nn.LazyLinear(2))
        tokens = torch.arange(12).view(6, 2) % 9
        model[2].initialize_parameters(torch.zeros(1, 6 if module is nn.Embedding else 3))
        model[0].requires_grad_(not frozen)
        refused(
            ValueError,
            r"must not write to parameters.*'0\.weight'\. Set max_norm=None",
            model,
            lambda out, _: out.sum(1),
            tokens,
            Y,
        )

    @pytest.mark.parametrize(
        "write",
        [
            lambda weight: weight.data.clamp_(-0.1, 0.1),
            lambda weight: weight.detach().mul_(0.5),
            lambda weight: weight.data.__setitem__(0, 0.0),
            lambda weight: weight.detach().__imul__(2),
        ],
    )
    def test_clipping_in_forward(self, write: Callable[[Tensor], object]) -> None:
        class Clipped(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                write(self.weight)
                return super().forward(x)

        torch.manual_seed(0)
        refused(ValueError, "move other writes out of forward", nn.Sequential(Clipped(4, 3)), CROSS_ENTROPY, X, Y)


def test_reentrant_checkpoint() -> None:
    torch.manual_seed(0)
    loss = lambda outputs, _: outputs.sin().sum(1)  # noqa: E731
    refused(ValueError, "use_reentrant=False", Checkpointed(use_reentrant=True), loss, X.clone().requires_grad_(), Y)


def test_explicit_rows_past_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Powered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.rand(4) + 1)

        def forward(self, x: Tensor) -> Tensor:
            return x.abs() ** self.power

    monkeypatch.setattr(sgdkern.explicit, "LIMIT_BYTES", 64)
    with pytest.warns(UserWarning, match="without a fast route: power"):
        refused(
            ValueError,
            r"must fit 64 bytes, got 96 for 6 samples of \['power'\].*StreamingGradients",
            Powered(),
            lambda out, _: out.sin().sum(1),
            X,
            Y,
        )
