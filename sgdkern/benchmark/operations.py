"""Times every compiled operation against the machine's own matrix product rate and its reference."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdkern.benchmark.timing import median_seconds, medians_in_turns
from sgdkern.benchmark.work import CEILING_FLOPS, ceiling_product
from sgdkern.ops import OPS
from sgdkern.ops.registry import Arguments


@dataclass(frozen=True)
class OperationSpeed:
    """One operation on one shape.

    Attributes:
        operation: Its name.
        shape: The shape, in words.
        dtype: The element type.
        threads: PyTorch's number of threads.
        seconds: Median time of the operation as installed.
        reference_seconds: The same of the reference in plain PyTorch.
        gflops: Useful 10^9 operations a second.
        ceiling_gflops: The median rate of a square matrix product, in turns with the operation.
    """

    operation: str
    shape: str
    dtype: str
    threads: int
    seconds: float
    reference_seconds: float
    gflops: float
    ceiling_gflops: float

    @property
    def share_of_ceiling(self) -> float:
        """Of the matrix product rate, counting useful operations only: above 1/2 nothing is computed twice."""
        return self.gflops / self.ceiling_gflops


def _normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _gram_arguments(dtype: torch.dtype) -> Iterator[tuple[str, Arguments]]:
    """The factors of fully connected networks, forward widths and samples."""
    for num_samples, widths in [
        (4000, (784, 50, 50, 10)),
        (1024, (784, 1024, 1024, 10)),
        (2048, (784, 1024, 1024, 10)),
        (512, (784, 4096, 4096, 10)),
        (2048, (784, 4096, 4096, 10)),
    ]:
        inputs = [_normal(dtype, num_samples, width) for width in widths[:-1]]
        output_grads = [_normal(dtype, num_samples, width) for width in widths[1:]]
        yield f"{'-'.join(map(str, widths))}, N = {num_samples}", (inputs, output_grads, [True] * len(inputs))


def _patch_gram_arguments(dtype: torch.dtype) -> Iterator[tuple[str, Arguments]]:
    """3 x 3 convolutions of a small and a residual network, and a sequence layer."""
    for num_samples, channels, side, outputs in [
        (256, 32, 16, 64),
        (256, 64, 8, 128),
        (64, 64, 32, 64),
        (64, 256, 8, 256),
    ]:
        inputs, grads = (
            _normal(dtype, num_samples, *s) for s in [(channels, side + 2, side + 2), (outputs, side, side)]
        )
        yield f"{channels}-{outputs}, {side} x {side}, N = {num_samples}", (inputs, grads, (3, 3), (1, 1), (1, 1))
    inputs, grads = (_normal(dtype, 128, 32, width).transpose(1, 2)[..., None] for width in (128, 384))
    yield "sequence 32, 128-384, N = 128", (inputs, grads, (1, 1), (1, 1), (1, 1))


def _gram_positions_arguments(dtype: torch.dtype) -> Iterator[tuple[str, Arguments]]:
    """Wide layers at few positions, where pairs of these cost less than gradients; a deep convolution's patches."""
    for num_samples, num_positions, in_features, out_features in [
        (256, 4, 512, 512),
        (128, 8, 768, 768),
        (64, 16, 1024, 1024),
        (512, 2, 256, 256),
        (64, 16, 4608, 512),
    ]:
        inputs, grads = (_normal(dtype, num_samples, num_positions, width) for width in (in_features, out_features))
        yield f"{num_positions} positions, {in_features}-{out_features}, N = {num_samples}", (inputs, grads, True)


ARGUMENTS: dict[str, Callable[[torch.dtype], Iterator[tuple[str, Arguments]]]] = {
    "gram": _gram_arguments,
    "gram_positions": _gram_positions_arguments,
    "patch_gram": _patch_gram_arguments,
}


def operation_speeds(
    dtype: torch.dtype,
    *,
    threads: int,
    operations: Collection[str] = tuple(ARGUMENTS),
    budget: float = 1.0,
    within: float = float("inf"),
) -> Iterator[OperationSpeed]:
    """Time the operations that have shapes to be timed on.

    Args:
        dtype: The operands' type.
        threads: PyTorch's number of threads.
        operations: Which ones; all, unless told otherwise.
        budget: Seconds over which each is repeated.
        within: Seconds for everything; what is then not done is left out.

    Yields:
        One line a shape.
    """
    before, end = torch.get_num_threads(), time.monotonic() + within
    torch.set_num_threads(threads)
    product = ceiling_product(dtype)
    try:
        for name in operations:
            op = OPS[name]
            for shape, args in ARGUMENTS[name](dtype):
                if time.monotonic() > end:
                    return
                op(*args)
                product()
                (seconds, full), _ = medians_in_turns([lambda op=op, args=args: op(*args), product], budget=budget)  # type: ignore[misc]
                reference, _ = median_seconds(lambda op=op, args=args: op.reference(*args), budget=budget / 2)  # type: ignore[misc]
                gflops = op.cost(*args).flops / seconds / 1e9
                kind = str(dtype).removeprefix("torch.")
                yield OperationSpeed(name, shape, kind, threads, seconds, reference, gflops, CEILING_FLOPS / full / 1e9)
    finally:
        torch.set_num_threads(before)
