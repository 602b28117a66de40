"""One dictionary of operations: each a reference in plain PyTorch that a compiled twin may overtake.

The compiled libraries are loaded before anything is defined: a twin whose signature has drifted from its reference is
then an ordinary RuntimeError at import (in the other order it would abort the process).
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol

import torch
from torch import Tensor

from sgdkern.full_precision import full_precision

P = ParamSpec("P")

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Cost:
    """What an operation cannot avoid: `flops` useful floating point operations, `num_bytes` read or written once."""

    flops: int
    num_bytes: int


class SampleInputs(Protocol):
    """Makes the arguments that every test and benchmark of an operation runs on."""

    def __call__(self, dtype: torch.dtype, device: torch.device) -> Iterable[Arguments]:
        """Yield argument tuples of one dtype on one device: odd sizes, empty and size-one axes among them."""


@dataclass(frozen=True)
class Library:
    """One compiled library: where it was looked for, and why it is not in use (None when it is)."""

    path: Path
    reason: str | None


def _load(target: str) -> Library:
    """Load `_lib/<target>.so` where it was built and this PyTorch can run it."""
    path = Path(__file__).parents[1] / "_lib" / f"{target}.so"
    if not path.exists():
        return Library(path, "not built")
    if target == "cuda" and torch.version.cuda is None:
        return Library(path, "this PyTorch was built without CUDA")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(path, str(error).splitlines()[0])
    return Library(path, None)


LIBRARIES = {target: _load(target) for target in ("cpu", "cuda")}

_NAMESPACE = torch.library.Library("sgdkern", "DEF")


class Op(Generic[P]):
    """An operation of the registry, called like its reference.

    Attributes:
        name: Its name, in Python, in the dispatcher and in `csrc/`.
        schema: Its dispatcher schema, inferred from the reference's signature.
        reference: The definition in plain PyTorch.
        dtypes: The element types that its tensors may have.
        check: Raises what a user can get wrong, before dispatch.
        sample_inputs: The arguments of every test and benchmark.
        cost: From arguments to what the operation cannot avoid.
    """

    def __init__(
        self,
        reference: Callable[P, Tensor],
        dtypes: tuple[torch.dtype, ...],
        check: Callable[P, None],
        sample_inputs: SampleInputs,
        cost: Callable[P, Cost],
    ) -> None:
        self.name = reference.__name__
        self.schema: str = torch.library.infer_schema(reference, mutates_args=())
        self.reference = reference
        self.dtypes = dtypes
        self.check = check
        self.sample_inputs = sample_inputs
        self.cost = cost
        functools.update_wrapper(self, reference)
        _NAMESPACE.define(self.name + self.schema, tags=torch.Tag.pt2_compliant_tag)
        _NAMESPACE.impl(self.name, full_precision(reference), "CompositeExplicitAutograd")
        self.overload = getattr(torch.ops.sgdkern, self.name).default

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Check the arguments and run the fastest implementation for their device."""
        self.check(*args, **kwargs)
        result: Tensor = self.overload(*args, **kwargs)
        return result

    def is_compiled(self, device_type: str) -> bool:
        """Tell whether a compiled twin serves tensors on "cpu" or "cuda"."""
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"sgdkern::{self.name}", device_type.upper())


OPS: dict[str, Op[Any]] = {}


def op(
    *,
    dtypes: tuple[torch.dtype, ...],
    check: Callable[P, None],
    sample_inputs: SampleInputs,
    cost: Callable[P, Cost],
) -> Callable[[Callable[P, Tensor]], Op[P]]:
    """Register a reference as an operation; without samples and a cost it is a TypeError by signature.

    Args:
        dtypes: The element types that its tensors may have.
        check: Raises ValueError or TypeError for arguments that a user can get wrong.
        sample_inputs: Yields argument tuples for a dtype and a device.
        cost: Useful flops and bytes of a call.

    Returns:
        The decorator.
    """

    def register(reference: Callable[P, Tensor]) -> Op[P]:
        OPS[reference.__name__] = Op(reference, dtypes, check, sample_inputs, cost)
        return OPS[reference.__name__]

    return register
