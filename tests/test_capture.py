"""The capture as users call it: wrappers, dtypes, restriction, chunks, and what its study of a model finds."""

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from case_modules import Bare, Reused, Routed, Tied
from oracles import assert_accurate, flat_gradient, in_double, per_sample_gradients
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sgdkern.study
from sgdkern.capture import per_sample_gradients as captured
from sgdkern.capture import unwrapped

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def sines(outputs: Tensor, _: Any = None) -> Tensor:
    return (
        outputs.double().sin().flatten(1).sum(1)
        if outputs.dtype == torch.float64
        else outputs.float().sin().flatten(1).sum(1)
    )


class TestWrappers:
    def test_data_parallel(self) -> None:
        model = network()
        G = captured(nn.DataParallel(model), CROSS_ENTROPY, X, Y)
        assert torch.equal(G.dense(), captured(model, CROSS_ENTROPY, X, Y).dense())
        assert list(G.parameters) == [name for name, _ in model.named_parameters()]

    def test_distributed_data_parallel(self, tmp_path: Path) -> None:
        if not torch.distributed.is_gloo_available():
            pytest.skip("this torch has no gloo")
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y)
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            found = captured(nn.parallel.DistributedDataParallel(model), CROSS_ENTROPY, X, Y)
        finally:
            torch.distributed.destroy_process_group()
        assert torch.equal(found.dense(), expected.dense())
        assert list(found.parameters) == list(expected.parameters)

    def test_compiled(self) -> None:
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y)
        found = captured(torch.compile(model, backend="eager"), CROSS_ENTROPY, X, Y)
        assert torch.equal(found.dense(), expected.dense())
        assert list(found.parameters) == list(expected.parameters)

    def test_compiled_in_place(self) -> None:
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y).dense()
        model.compile(backend="eager")
        assert torch.equal(captured(model, CROSS_ENTROPY, X, Y).dense(), expected)

    def test_compiled_child(self) -> None:
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y).dense()
        model[0].compile(backend="eager")
        assert torch.equal(captured(model, CROSS_ENTROPY, X, Y).dense(), expected)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_compiled_and_run_before(self) -> None:
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y).dense()
        compiled = torch.compile(model)
        compiled(X)
        assert torch.equal(captured(compiled, CROSS_ENTROPY, X, Y).dense(), expected)
        model.compile()
        model(X)
        assert torch.equal(captured(model, CROSS_ENTROPY, X, Y).dense(), expected)

    def test_wrapped_twice(self) -> None:
        model = network()
        assert unwrapped(torch.compile(nn.DataParallel(model), backend="eager")) is model


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_accumulates_in_single(self, dtype: torch.dtype) -> None:
        model = network().to(dtype)
        G = captured(model, sines, X.to(dtype), Y)
        assert G.dtype == G.gram().dtype == torch.float32
        doubled = per_sample_gradients(network().to(dtype).double(), (X.to(dtype).double(),), sines, 6)
        plain = per_sample_gradients(model, (X.to(dtype),), sines, 6)
        identity = lambda rows: rows  # noqa: E731
        assert_accurate(G.dense(), plain, doubled, identity, identity)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        """Under autocast the bound is that of the plain loop under autocast, whose unit is autocast's dtype."""
        model = network()
        truth = per_sample_gradients(network().double(), in_double((X,)), sines, 6)
        with torch.autocast("cpu", dtype=dtype):
            G = captured(model, sines, X, Y)
            plain = per_sample_gradients(model, (X,), sines, 6)
        error, allowed = (G.dense().double() - truth).norm(), 2 * (plain.double() - truth).norm()
        assert G.dtype == torch.float32
        assert error <= allowed + torch.finfo(dtype).eps * truth.norm()

    def test_double(self) -> None:
        G = captured(network().double(), CROSS_ENTROPY, X.double(), Y)
        assert G.dtype == G.gram().dtype == G.mean().dtype == torch.float64

    def test_mixed_parameters(self) -> None:
        """A half-precision body under a single-precision head."""
        torch.manual_seed(0)
        body, head = nn.Linear(4, 5).bfloat16(), nn.Linear(5, 3)

        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = body, head

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.body(x.bfloat16()).float().tanh())

        model = Mixed()
        G = captured(model, CROSS_ENTROPY, X, Y)
        loss = CROSS_ENTROPY(model(X), Y)
        expected = torch.cat([grad.float().flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])
        assert (G.mean() - expected).norm() <= 2 * torch.finfo(torch.bfloat16).eps * expected.norm()


class TestRestriction:
    def test_names(self) -> None:
        model = network()
        whole = captured(model, CROSS_ENTROPY, X, Y)
        G = captured(model, CROSS_ENTROPY, X, Y, params=["3.bias", "0.weight"])
        assert list(G.parameters) == ["0.weight", "3.bias"], "in the model's order, not in the caller's"
        assert torch.equal(G.dense(), whole.restrict(["0.weight", "3.bias"]).dense())

    def test_one_name(self) -> None:
        assert list(captured(network(), CROSS_ENTROPY, X, Y, params="1.weight").parameters) == ["1.weight"]

    def test_predicate(self) -> None:
        G = captured(network(), CROSS_ENTROPY, X, Y, params=lambda name: name.endswith("bias"))
        assert list(G.parameters) == ["0.bias", "1.bias", "3.bias"]

    def test_frozen_parameters_are_no_columns(self) -> None:
        model = network()
        model[0].requires_grad_(False)
        assert list(captured(model, CROSS_ENTROPY, X, Y).parameters) == ["1.weight", "1.bias", "3.weight", "3.bias"]

    def test_a_tied_parameter_has_one_name(self) -> None:
        G = captured(Tied(), sines, (torch.randint(0, 11, (5, 3)),), torch.zeros(5))
        assert "head.weight" not in G.parameters
        assert "embedding.weight" in G.parameters

    def test_half_of_a_pair(self) -> None:
        """Restricted to one parameter of a layer that holds two."""
        model = network()
        whole = captured(model, CROSS_ENTROPY, X, Y).dense()
        for name, columns in captured(model, CROSS_ENTROPY, X, Y).parameters.items():
            G = captured(model, CROSS_ENTROPY, X, Y, params=[name])
            torch.testing.assert_close(G.dense(), whole[:, columns])
            torch.testing.assert_close(G.gram(), whole[:, columns] @ whole[:, columns].T)


class TestInputs:
    def test_tuple_list_and_dict(self) -> None:
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 3)

            def forward(self, one: Tensor, rest: list[Tensor]) -> Tensor:
                return self.linear(one) + sum(self.linear(each) for each in rest)

        torch.manual_seed(0)
        model, inputs = Sum(), (X, [X * 2, X - 1])
        G = captured(model, sines, inputs, Y)
        assert torch.equal(captured(model, sines, {"one": X, "rest": inputs[1]}, Y).dense(), G.dense())
        assert torch.allclose(captured(model, sines, inputs, Y, chunk_size=4).dense(), G.dense())

    def test_a_dataclass_as_output_and_a_loss_of_several_outputs(self) -> None:
        @dataclass
        class Outputs:
            logits: Tensor
            values: Tensor

        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.logits, self.values = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 1)

            def forward(self, x: Tensor) -> Outputs:
                hidden = self.body(x).tanh()
                return Outputs(self.logits(hidden), self.values(hidden)[:, 0])

        def loss(outputs: Outputs, targets: dict[str, Tensor]) -> Tensor:
            weights = torch.tensor([1.0, 2.0, 0.5])
            entropy = nn.functional.cross_entropy(
                outputs.logits, targets["labels"], weight=weights, label_smoothing=0.1, ignore_index=2, reduction="none"
            )
            return entropy + (outputs.values - targets["values"]).square()

        torch.manual_seed(0)
        model, targets = Heads(), {"labels": Y, "values": X[:, 0]}
        G = captured(model, loss, X, targets, chunk_size=4)
        expected = torch.stack([
            flat_gradient(
                loss(model(X[[n]]), {key: value[[n]] for key, value in targets.items()}).sum(), list(model.parameters())
            )
            for n in range(6)
        ])
        torch.testing.assert_close(G.dense(), expected)
        assert G.outputs is None

    def test_batch_encoding(self) -> None:
        transformers = pytest.importorskip("transformers", reason="its batches are a mapping of their own")
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        batch = transformers.BatchEncoding({"input": X})
        G = captured(model, CROSS_ENTROPY, batch, Y, chunk_size=4)
        torch.testing.assert_close(G.dense(), captured(model, CROSS_ENTROPY, X, Y).dense())

    def test_outputs(self) -> None:
        model = network()
        G = captured(model, CROSS_ENTROPY, X, Y, chunk_size=4)
        torch.testing.assert_close(G.outputs, model(X).detach())
        torch.testing.assert_close(G.select(torch.tensor([5, 0])).outputs, model(X[[5, 0]]).detach())
        assert not G.outputs.requires_grad

    @pytest.mark.parametrize("chunk_size", [1, 2, 5, 6, 100])
    def test_chunk_sizes(self, chunk_size: int) -> None:
        model = network()
        expected = captured(model, CROSS_ENTROPY, X, Y)
        G = captured(model, CROSS_ENTROPY, X, Y, chunk_size=chunk_size)
        torch.testing.assert_close(G.dense(), expected.dense())
        torch.testing.assert_close(G.losses, expected.losses)

    def test_sequences_of_other_lengths(self) -> None:
        """A second batch of another shape is captured by what the first one taught."""
        torch.manual_seed(0)
        model = nn.GRU(3, 4, batch_first=True)
        loss = lambda outputs, _: outputs[0].sin().flatten(1).sum(1)  # noqa: E731
        for length in (5, 2, 1, 8):
            x = torch.randn(4, length, 3)
            G = captured(model, loss, x, torch.zeros(4))
            expected = per_sample_gradients(model, (x,), lambda out: loss(out, None), 4)
            torch.testing.assert_close(G.dense(), expected, rtol=1e-4, atol=1e-6)


class TestStudy:
    def test_one_study_serves_all_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, studies = network(), []
        original = sgdkern.study.examine
        monkeypatch.setattr(sgdkern.study, "examine", lambda *args: studies.append(1) or original(*args))
        for _ in range(3):
            captured(model, CROSS_ENTROPY, X, Y)
        assert len(studies) == 1
        captured(model.eval(), CROSS_ENTROPY, X, Y)
        assert len(studies) == 2, "another mode may be another network"
        captured(model, CROSS_ENTROPY, X, Y, params=["0.weight"])
        assert len(studies) == 3

    def test_routes_that_change_with_the_samples(self) -> None:
        """Experts that see other samples at every call, and sometimes none."""
        torch.manual_seed(0)
        model = Routed()
        for n in (7, 1, 2, 12):
            x = torch.randn(n, 4)
            expected = per_sample_gradients(model, (x,), sines, n)
            torch.testing.assert_close(
                captured(model, sines, x, torch.zeros(n)).dense(), expected, rtol=1e-4, atol=1e-6
            )

    def test_a_model_that_grew(self) -> None:
        model = network()
        captured(model, CROSS_ENTROPY, X, Y)
        model.append(nn.Linear(3, 3))
        expected = per_sample_gradients(model, (X,), sines, 6)
        torch.testing.assert_close(captured(model, sines, X, Y).dense(), expected)

    def test_another_loss_is_studied_anew(self) -> None:
        model = network()
        captured(model, lambda out, y: out[:, 0], X, Y)
        expected = per_sample_gradients(model, (X,), sines, 6)
        torch.testing.assert_close(captured(model, sines, X, Y).dense(), expected)

    def test_a_parameter_that_is_not_used(self) -> None:
        G = captured(Bare(), sines, torch.randn(6, 5), Y)
        assert G.coverage["unused"] == "no gradient: not used in the loss"
        assert not G.dense()[:, G.parameters["unused"]].any()

    def test_coverage_names_the_rules(self) -> None:
        coverage = captured(Reused(), sines, torch.randn(6, 5), Y).coverage
        assert coverage == {
            "linear.weight": "factors: linear",
            "linear.bias": "factors: linear",
            "conv.weight": "factors: convolution",
            "conv.bias": "factors: convolution",
        }

    def test_losses_that_are_all_equal_to_nothing(self) -> None:
        """No gradient anywhere: rows of zeros, not an error."""
        G = captured(network(), lambda out, y: (out * 0).sum(1), X, Y)
        assert not G.dense().any()
        assert not G.gram().any()

    def test_a_sample_without_a_gradient(self) -> None:
        model = network()
        loss = lambda outputs, targets: sines(outputs) * (targets > 0)  # noqa: E731
        G = captured(model, loss, X, Y)
        expected = torch.stack([
            flat_gradient(loss(model(X[[n]]), Y[[n]]).sum(), list(model.parameters())) for n in range(6)
        ])
        torch.testing.assert_close(G.dense(), expected)

    def test_plans_do_not_keep_models_alive(self) -> None:
        model = network()
        captured(model, CROSS_ENTROPY, X, Y)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


def test_no_weight_gradient_is_computed() -> None:
    """A capture's products are the layers' own, forward, and those to the layers' inputs, backward: no more."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels, loss = torch.randn(20, 6), torch.arange(20) % 3, nn.CrossEntropyLoss()
    captured(model, loss, inputs, labels)  # the study of a new model is over
    with Products() as products:
        captured(model, loss, inputs, labels)
    assert products.count == 3 + 2
    with Products() as products:
        torch.autograd.grad(loss(model(inputs), labels), list(model.parameters()))
    assert products.count == 3 + 2 + 3


@pytest.mark.parametrize(
    ("read", "left"),
    [
        (lambda x: x.mean(1), [6, 1]),
        (lambda x: x[:, 0], [2, 2]),
        (lambda x: x[:, 3], [3, 3]),
        (lambda x: x.sin().sum(1), [6, 6]),
        (lambda x: (x * torch.arange(6.0)[:, None]).mean(1), [6, 6]),
    ],
)
def test_positions_that_the_loss_does_not_tell_apart_are_one(read: Any, left: list[int]) -> None:
    """After a mean, or where one position is read, the gradients of the layers before are those of fewer positions."""
    torch.manual_seed(0)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(read(self.body(x)))
            return out

    model, inputs = Pooled().double(), torch.randn(7, 6, 4).double()
    G = captured(model, lambda outputs, _: sines(outputs), inputs, torch.zeros(7))
    entries = {min(entry.parameters): entry.factors for entry in G.entries}
    assert [entries[f"body.{place}.bias"].num_positions for place in (0, 2)] == left
    torch.testing.assert_close(G.dense(), per_sample_gradients(model, (inputs,), sines, 7))
