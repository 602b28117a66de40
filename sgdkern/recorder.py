"""Recorder: sees every torch function in which parameters meet samples, and keeps what its rule will need.

Nothing is registered on the model. A `TorchFunctionMode` belongs to one thread and one `with` block, so a measurement
leaves no trace and two threads do not meet. Calls are kept with the *gradient edge* of their output, which stays right
when an activation later works in place on that output.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from sgdkern.layers import DECOMPOSITIONS, LAYERS, Layer
from sgdkern.substitutes import SUBSTITUTES

_REPETITIONS = {"expand", "expand_as", "repeat", "broadcast_to", "tile"}
# What may put samples into an order of their own: names of functions and methods without trailing underscores.
_SUBSCRIPTS = {"__getitem", "__setitem"}
_INDEXING = _SUBSCRIPTS | {"index_select", "index_add", "index_copy", "index_put", "gather", "take", "take_along_dim"}
_INDEXING |= {"masked_select", "masked_scatter", "scatter", "scatter_add", "scatter_reduce", "sort", "topk"}
_INDEXING |= {"_pack_padded_sequence"}
_JOINING = {"cat", "concat", "concatenate", "stack", "vstack", "hstack"}
_TURNING = {"roll": 2, "flip": 1, "flipud": 1}  # and where their axes stand among the arguments
_PRODUCTS = {"matmul", "__matmul", "__rmatmul", "mm", "einsum"}
# With max_norm these write to their table, frozen or not: their bodies are always looked into.
_WRITERS = (nn.functional.embedding, nn.functional.embedding_bag)


@dataclass(frozen=True, eq=False)
class Site:
    """One recorded call: its rule, its arguments, and where its output's gradient will be found.

    Args:
        layer: the rule.
        args: positional arguments.
        kwargs: keyword arguments.
        edge: where the gradient of the output will be found.
        shape: of the output.
        dtype: of the output.
        parameters: names of the parameters that went in.
        reordered: whether the model had indexed samples before: their order here may depend on the samples.
    """

    layer: Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    parameters: frozenset[str]
    reordered: bool

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two passes over different samples have in common."""
        return self.layer.name, len(self.args), tuple(self.kwargs), len(self.shape), self.parameters

    def without_arguments(self) -> Site:
        """The same call after use: it holds no activations any more."""
        return dataclasses.replace(self, args=(), kwargs={})


class Recorder(TorchFunctionMode):
    """Records the calls in which tracked parameters meet anything that is not made of parameters alone.

    Args:
        model: the model; its other parameters and its buffers are constants, the same for all samples.
        tracked: name → parameter looked at.
        num_samples: N of the batch that will be recorded; 0 where it is not known.
    """

    def __init__(self, model: nn.Module, tracked: Mapping[str, nn.Parameter], num_samples: int) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.unruled: dict[str, str] = {}  # parameter → the function that has no rule
        self.parameters = tracked
        self.names = {id(parameter): name for name, parameter in tracked.items()}
        self.sources: dict[int, frozenset[str]] = {
            id(parameter): frozenset([name]) for name, parameter in tracked.items()
        }
        self.constants: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.repeated: dict[int, Tensor] = {}
        self.reordered = False
        self.hooked = False  # whether forward registers hooks on its tensors
        self.num_samples = num_samples
        self.memory = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()}

    def tracked(self, value: Any) -> bool:
        """Whether a value is a tracked parameter or computed from one, and from no sample."""
        return id(value) in self.sources and isinstance(value, Tensor) and value.requires_grad

    def unexpanded(self, tensor: Tensor) -> Tensor:
        """The tensor that was repeated to give this one; itself where none was."""
        while id(tensor) in self.repeated:
            tensor = self.repeated[id(tensor)]
        return tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one torch function, and look at what went in."""
        kwargs = dict(kwargs or {})
        self.hooked = self.hooked or func is torch.Tensor.register_hook
        if _writes(func):
            self._refuse_write(args[0] if args else None)
        inner = _without_guard(func) if func in _WRITERS else None
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        self.reordered = self.reordered or self._reorders(func, args, kwargs, tensors)
        met = frozenset[str]().union(*(self.sources[id(tensor)] for tensor in tensors if id(tensor) in self.sources))
        if all(id(tensor) in self.constants for tensor in tensors) and not self._meets_samples(func, args):
            return self._constant(func, args, kwargs, met)
        if not met:
            return SUBSTITUTES.get(func, func)(*args, **kwargs)
        layer = LAYERS.get(func)
        if layer is None:
            inner = DECOMPOSITIONS.get(func) or _without_guard(func)
            if inner is not None:
                with self:
                    return inner(*args, **kwargs)
        versions = [(tensor, tensor._version) for tensor in tensors if id(tensor) in self.constants]
        out = SUBSTITUTES.get(func, func)(*args, **kwargs)
        for tensor, version in versions:
            if tensor._version != version:  # written to in place with samples: no constant any more
                self.constants.pop(id(tensor), None)
                self.sources.pop(id(tensor), None)
        self._record(layer, func, args, kwargs, out, met)
        return out

    def _refuse_write(self, tensor: Any) -> None:
        """Raise before a parameter is written to: a measurement leaves the model as it was."""
        name = self.memory.get(tensor.untyped_storage().data_ptr()) if isinstance(tensor, Tensor) else None
        if name is not None:
            raise ValueError(
                f"per_sample_gradients: the forward pass must not write to parameters, but it is about to write to "
                f"{name!r}. Set max_norm=None on embeddings while measuring, and move other writes out of forward."
            )

    def _meets_samples(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether constants are one row a sample all the same: an initial state, positions 0 … T − 1 for each."""
        place = {nn.functional.linear: 0, torch.embedding: 1}.get(func, len(args))
        rows = args[place] if place < len(args) else None
        if not isinstance(rows, Tensor):
            return False
        return id(rows) not in self.sources and rows.ndim > 1 and len(rows) == self.num_samples

    def _reorders(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> bool:
        """Whether a call may put samples into an order of their own: sorted, routed, packed, stacked one by one."""
        name = getattr(func, "__name__", "").rstrip("_")
        if name in _PRODUCTS:
            return len(tensors) > 1 and self._contracts_rows(args, tensors)
        if name in _JOINING:
            if not (args and (len(args[0]) == self.num_samples > 1 or self._has_parts(tensors))):
                return False
        elif name in _TURNING:
            axes = [*args[_TURNING[name] :], kwargs.get("dims", ())]
            axes = [axis for each in axes for axis in (each if isinstance(each, tuple | list) else [each])]
            if axes and not any(axis in (0, -tensors[0].ndim) for axis in axes):
                return False
        elif name not in _INDEXING:
            return False
        if name in _SUBSCRIPTS:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if not any(isinstance(index, Tensor | list | numpy.ndarray) for index in indices):
                return False
        moved = tensors if name == "__setitem" else tensors[:1]
        return any(id(tensor) not in self.constants for tensor in moved)

    def _has_parts(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors have rows of some samples only, and of all together."""
        lengths, whole = [len(tensor) if tensor.ndim else 1 for tensor in tensors], max(1, self.num_samples)
        return sum(lengths) % whole == 0 and any(length % whole for length in lengths)

    def _contracts_rows(self, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> bool:
        """Whether a product of what was computed from samples sums over their rows: a permutation, a dispatch."""
        if any(id(tensor) in self.constants or not tensor.ndim for tensor in tensors):
            return False
        if args and isinstance(args[0], str):
            inputs, arrow, output = args[0].replace(" ", "").partition("->")
            first = {term[0] for term in inputs.split(",") if term and (term[0] not in output if arrow else True)}
            rows = [len(tensor) for tensor, term in zip(tensors, inputs.split(","), strict=False) if term[:1] in first]
        else:
            rows = [len(tensors[1])] if tensors[1].ndim == 2 else []
        return any(length % max(1, self.num_samples) == 0 for length in rows)

    def _constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], met: frozenset[str]) -> Any:
        """Run a function of constants alone: a constant too, and tracked where a tracked parameter went in."""
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self.constants[id(tensor)] = tensor
            if met and tensor.requires_grad:
                self.sources[id(tensor)] = self.sources.get(id(tensor), frozenset()) | met
                if (
                    getattr(func, "__name__", "") in _REPETITIONS
                    and isinstance(args[0], Tensor)
                    and args[0] is not tensor
                ):
                    self.repeated[id(tensor)] = args[0]
        return out

    def _record(
        self,
        layer: Layer | None,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        met: frozenset[str],
    ) -> None:
        """Keep a call if gradients can flow through it; of several outputs the first is the layer's."""
        if layer is not None and isinstance(out, tuple):
            out = out[0]
        if not (isinstance(out, Tensor) and out.requires_grad) and not any(t.requires_grad for t in _tensors(out)):
            return
        if layer is None or not isinstance(out, Tensor):
            name = getattr(func, "__name__", str(func))
            self.unruled.update(dict.fromkeys(met, name))
            return
        self.sites.append(Site(layer, args, kwargs, get_gradient_edge(out), out.shape, out.dtype, met, self.reordered))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dicts of arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


@cache
def _writes(func: Any) -> bool:
    """Whether a torch function works in place on its first argument."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        in_place = name.startswith("__i") and name[3:-2] in {"add", "sub", "mul", "truediv", "pow", "and", "or", "xor"}
        return in_place or name == "__setitem__" or func is torch.Tensor.data.__set__  # type: ignore[attr-defined]
    return name.endswith("_") and name != "requires_grad_"


@cache
def _without_guard(func: Any) -> Callable[..., Any] | None:
    """A Python function of torch.nn.functional that runs its own body, so that what is inside can be seen, or None."""
    if not isinstance(func, types.FunctionType) or func.__module__ != "torch.nn.functional":
        return None
    never = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
    )
    body = types.FunctionType(
        func.__code__, {**func.__globals__, **never}, func.__name__, func.__defaults__, func.__closure__
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body
