"""watch: measures the minibatches of a training loop by way of the loop's own forward and backward passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sgdkern.capture import tracked_parameters, unwrapped
from sgdkern.classification import margins_and_predictions
from sgdkern.gradient_matrix import GradientMatrix
from sgdkern.history import History
from sgdkern.losses import check_losses, unreduced
from sgdkern.order_parameters import order_parameters
from sgdkern.placement import Place
from sgdkern.problem import slices_of
from sgdkern.record import Record
from sgdkern.recorded_pass import Pass, check_gradients, entries, located
from sgdkern.recorder import Recorder
from sgdkern.schedule import Every, schedule
from sgdkern.speaker import speaking_as
from sgdkern.statistics import Groups
from sgdkern.study import examine, holds, state_of

# Largest relative difference between the loop's loss gradient and a multiple of loss_fn's: rounding, not another loss.
SAME_LOSS = 1e-2


class watch:
    """Measures every minibatch of a training loop while the loop itself runs forward and backward.

    Inside the ``with`` block the model's forward passes are recorded, and each ``loss.backward()`` hands over the
    gradients of the layers' outputs that it computes anyway: no pass over the model is added, but for one at the first
    minibatch, which finds out how the samples lie in its activations. Weights, ``.grad`` and everything else are what
    they would have been; the hooks on ``model`` and ``loss_fn`` go with the block.

    The samples are those of one minibatch, so the order parameters are those of a small ensemble: see the unbiased
    estimates and their bounds. All parameters must have a fast route (``sgdkern.verify`` tells); others are refused.

    Args:
        model: The network being trained.
        loss_fn: The loss that the loop calls: a loss module, a function of ``torch.nn.functional``, or any function of
            (outputs, targets); one of your own is called as ``watched.loss_fn(outputs, targets)`` in the loop. The loop
            may scale its value: a mean, a sum, a share of an accumulated step, a gradient scaler.
        batch_size: B of the minibatches whose noise is asked for; None takes half of each minibatch.
        every: Which steps to measure: None for 16 a decade, a number of steps, a collection, or a function of the step.
        params: Restricts the gradient to parameters, as for ``sgdkern.per_sample_gradients``.
        groups: A function of (inputs, targets) that gives a partition of a minibatch; None makes none.
        num_minibatches: Minibatches drawn for the alignment R; 0 leaves it out.
        seed: Seed of these draws.
        on_record: Called with each new record.

    Attributes:
        history: All records so far; a record's step counts the backward passes.
        gradients: The gradient matrix of the last measured minibatch; None before the first.
        seconds: Time spent beside the loop's own passes.

    Raises:
        ValueError: If the model is compiled, or the loss run backward is not a multiple of ``loss_fn``.

    Example:
        >>> import torch, sgdkern as sk
        >>> model, loss_fn = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
        >>> with sk.watch(model, loss_fn, every=1) as watched:
        ...     for step in range(3):
        ...         loss_fn(model(torch.randn(8, 4)), torch.arange(8) % 2).backward()
        >>> len(watched.history)
        3
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        *,
        batch_size: int | None = None,
        every: Every = None,
        params: Any = None,
        groups: Callable[[Any, Any], Groups] | None = None,
        num_minibatches: int = 128,
        seed: int = 0,
        on_record: Callable[[Record], object] | None = None,
    ) -> None:
        with speaking_as("watch"):
            self._module = unwrapped(model)
            self._tracked = tracked_parameters(self._module, params)
        if self._module is not model and not isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError("watch: the model must not be compiled, since compiled code hides its layers. Use Probe.")
        self._given_loss, self._unreduced = loss_fn, unreduced(loss_fn)
        self._batch_size, self._groups, self._is_due = batch_size, groups, schedule(every)
        self._num_minibatches, self._generator = num_minibatches, torch.Generator().manual_seed(seed)
        self._on_record = on_record
        self._layouts: dict[Any, tuple[Place, ...]] = {}
        self._handles: list[Any] = []
        self._mode = _LoopMode(self)
        self._open, self._recording = ExitStack(), ExitStack()
        self._recorder: Recorder | None = None
        self._inputs: Any = None
        self._call: tuple[Tensor, Any] | None = None
        self._step = 0
        self.history = History({})
        self.gradients: GradientMatrix | None = None
        self.seconds = 0.0

    def loss_fn(self, outputs: Any, targets: Any) -> Tensor:
        """The loss, seen by the watch: for losses that are neither modules nor functions of torch.

        Args:
            outputs: What the model returned.
            targets: What it is compared with.

        Returns:
            The loss as given; its mean where it gives one number a sample.
        """
        self.saw_loss(outputs, targets)
        loss = self._given_loss(outputs, targets)
        return loss.mean() if loss.ndim else loss

    def __enter__(self) -> watch:
        self._handles.append(self._module.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._handles.append(self._module.register_forward_hook(self._end, always_call=True))
        if isinstance(self._given_loss, nn.Module):
            self._handles.append(self._given_loss.register_forward_hook(lambda _, args, __: self.saw_loss(*args[:2])))
        self._open.enter_context(self._mode)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder = self._call = self._inputs = None

    def sees(self, function: Any) -> bool:
        """Whether a torch function is the loss of the loop."""
        return function is self._given_loss

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass begins: record it where a measurement is due."""
        self._recorder = self._call = None
        if torch.is_grad_enabled() and self._is_due(self._step):
            self._inputs = args[0] if args else next(iter(kwargs.values()), None)
            size = len(self._inputs) if isinstance(self._inputs, Tensor) else 0
            # Our mode is active beside it, so that torch's own functions run: the step stays what it would have been.
            self._recorder = Recorder(self._module, self._tracked, size)
            self._recording.enter_context(self._recorder)

    def _end(self, *_: Any) -> None:
        """A forward pass has ended, well or badly."""
        self._recording.close()

    def saw_loss(self, outputs: Any, targets: Any) -> None:
        """Remember what the loss was called with."""
        if isinstance(outputs, Tensor) and outputs.requires_grad:
            self._call = (outputs, targets)

    def backward(self, run: Callable[[], None]) -> None:
        """Run the loop's backward pass, and keep what comes by.

        Args:
            run: The backward pass.

        Raises:
            ValueError: If the loss was not seen, or is not what was run backward.
        """
        recorder, call = self._recorder, self._call
        self._recorder = self._call = None
        step, self._step = self._step, self._step + 1
        if recorder is None or not (recorder.sites or recorder.unruled):
            return run()
        if call is None:
            raise ValueError(
                "watch: the loss must be seen, but loss_fn was not called between forward and backward. "
                "Call the very loss_fn that was given, or watched.loss_fn(outputs, targets) for a function of your own."
            )
        with speaking_as("watch"):
            return self._measured(step, recorder, call, run)

    def _measured(self, step: int, recorder: Recorder, call: tuple[Tensor, Any], run: Callable[[], None]) -> None:
        """Run the loop's backward pass, and measure by what comes by."""
        began = time.perf_counter()
        outputs, targets = call
        losses = check_losses(self._unreduced(outputs, targets), recorder.num_samples)
        seen = Pass(losses, outputs, recorder, recorder.num_samples)
        layouts = self._places(seen)
        (expected,) = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
        edges = [site.edge for site in recorder.sites]
        places = located(seen, layouts)
        passing = time.perf_counter()
        found = _gradients_passing_by([*edges, torch.autograd.graph.get_gradient_edge(outputs)], run)
        after = time.perf_counter()
        scale = _scale(found.pop(), expected)
        seen.grads = [None if grad is None else grad / scale for grad in found]
        placed = entries(seen, places, ())
        check_gradients(placed)
        routes = dict.fromkeys(self._tracked, "factors, from the loop's own backward pass")
        columns = slices_of(self._tracked)
        self.gradients = GradientMatrix(tuple(placed), columns, losses.detach(), outputs.detach(), routes)
        record = self._record(step, self.gradients, targets)
        self.history.append(record)
        self.seconds += time.perf_counter() - after + passing - began
        if self._on_record is not None:
            self._on_record(record)

    def _places(self, seen: Pass) -> tuple[Place, ...]:
        """Where the samples are; studied at the first minibatch of a kind, on the loop's own graph."""
        sites = seen.recorder.sites
        signatures = tuple(site.signature for site in sites)
        key = (signatures, seen.num_samples, state_of(self._module, self._tracked, seen))
        if key not in self._layouts or not holds(seen, self._layouts[key]):
            found = examine(self._module, self._tracked, seen)
            if found.unexplained:
                reasons = ", ".join(f"{name} ({reason})" for name, reason in list(found.unexplained.items())[:5])
                raise ValueError(
                    f"watch: every parameter must have a fast route, but these have none: {reasons}. "
                    "Leave them out by params=, or use Probe, which computes explicit gradients."
                )
            self._layouts[key] = found.layouts
        return self._layouts[key]

    def _record(self, step: int, matrix: GradientMatrix, targets: Any) -> Record:
        """Order parameters of one minibatch."""
        groups = None if self._groups is None else self._groups(self._inputs, targets)
        batch_size = max(1, matrix.num_samples // 2) if self._batch_size is None else self._batch_size
        measured = order_parameters(
            matrix,
            batch_size=batch_size,
            groups=groups,
            num_minibatches=self._num_minibatches,
            generator=self._generator,
        )
        margins, predictions = margins_and_predictions(matrix.outputs, targets)
        losses = matrix.losses.cpu().float().numpy()
        return Record(step=step, values=measured.scalars(), losses=losses, margins=margins, predictions=predictions)


class _LoopMode(TorchFunctionMode):
    """Sees two things in the loop: calls of the loss where it is a torch function, and backward passes."""

    def __init__(self, watched: watch) -> None:
        super().__init__()
        self._watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, and tell the watch of those it waits for."""
        kwargs = kwargs or {}
        if func is torch.Tensor.backward:
            return self._watched.backward(partial(func, *args, **kwargs))
        if self._watched.sees(func):
            self._watched.saw_loss(*args[:2])
        return func(*args, **kwargs)


def _gradients_passing_by(edges: list[Any], run: Callable[[], None]) -> list[Tensor | None]:
    """What arrives at some edges of the autograd graph while a backward pass runs."""
    found: list[Tensor | None] = [None] * len(edges)

    def keep(place: int, number: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        def hook(grads: tuple[Tensor | None, ...]) -> None:
            grad = grads[number]
            found[place] = None if grad is None else grad.detach()

        return hook

    handles = [edge.node.register_prehook(keep(place, edge.output_nr)) for place, edge in enumerate(edges)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _scale(found: Tensor | None, expected: Tensor) -> float:
    """The factor between the loop's loss and Σ l_n, from their gradients at the model's output."""
    if found is None:
        raise ValueError("watch: the loss run backward must depend on what loss_fn was called with, but it does not.")
    found, expected = found.double(), expected.double()
    scale = float((found * expected).sum() / expected.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    difference = (found - scale * expected).norm()
    if scale == 0 or difference > SAME_LOSS * found.norm():
        raise ValueError(
            "watch: the loss run backward must be a multiple of loss_fn's (a mean, a sum, a scaled one), but is not. "
            "Are samples weighted one by one, or is another loss added? Give the whole loss as loss_fn."
        )
    return scale
