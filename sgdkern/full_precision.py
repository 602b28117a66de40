"""full_precision: what is computed from gradients keeps their dtype, whatever autocast does to the user's model."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def full_precision(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Run a function outside any autocast: its products would be rounded to 16 bits, and their sums lost with them.

    Args:
        function: what computes from gradients, and runs no model.

    Returns:
        The same function, autocast off while it runs.
    """

    @functools.wraps(function)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with ExitStack() as stack:
            for device in ("cpu", "cuda", "mps", "xpu"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run


@full_precision
def product(left: Tensor, right: Tensor) -> Tensor:
    """Give left @ right, for those between whose products a model runs."""
    return left @ right
