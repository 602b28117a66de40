"""A case measured three ways: by the code under test, by plain autograd in the model's dtype, and in float64."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case
from oracles import assert_accurate, in_double, per_sample_gradients
from snapshot import Snapshot
from torch import Tensor, nn

import sgdkern.capture
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.gram_pass import GramMatrix, gram_matrix


@dataclass(frozen=True)
class Measured:
    """One case and its gradient matrices."""

    case: Case
    model: nn.Module
    inputs: Any
    num_samples: int
    G: GradientMatrix
    plain: Tensor
    truth: Tensor
    warned: list[warnings.WarningMessage]
    changes: list[str]

    def capture(self, **options: Any) -> GradientMatrix:
        """The case measured again, warnings ignored."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return captured(self.case, self.model, self.inputs, self.num_samples, **options)

    def gram_matrix(self) -> GramMatrix:
        """K of the case, formed during the backward pass, warnings ignored."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return captured(self.case, self.model, self.inputs, self.num_samples, function=gram_matrix)

    def agrees(
        self,
        found: Tensor,
        function: Callable[[Tensor], Tensor],
        size: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Hold a function of G to the accuracy rule."""
        assert_accurate(found, self.plain, self.truth, function, size or function)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers in G's dtype, the same at every call."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.G.dtype)


def captured(
    case: Case,
    model: nn.Module,
    inputs: Any,
    num_samples: int,
    *,
    function: Callable[..., Any] = sgdkern.capture.per_sample_gradients,
    **options: Any,
) -> Any:
    """A case as a user would measure it."""
    loss = lambda outputs, _: case.loss(outputs)  # noqa: E731
    return function(model, loss, inputs, torch.zeros(num_samples), **options)


def measure(case: Case) -> Measured:
    """Run a case three ways."""
    model, inputs = case.made()
    num_samples = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])
    with warnings.catch_warnings():  # some architectures warn about themselves
        warnings.simplefilter("ignore")
        twin, twin_inputs = case.made()
        truth = per_sample_gradients(twin.double(), in_double(twin_inputs), case.loss, num_samples)
        plain = per_sample_gradients(model, inputs, case.loss, num_samples)
    before = Snapshot(model, seeded_grads=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        G = captured(case, model, inputs, num_samples)
    changes = before.changes()
    return Measured(case, model, inputs, num_samples, G, plain, truth, warned, changes)
