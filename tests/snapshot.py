"""All that a measurement must leave alone, compared bit for bit."""

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_forward_hooks_with_kwargs",
)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Bit for bit, not-a-numbers included."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and bool(((one == other) | (one != one)).all())


class Snapshot:
    """The state of a model and of torch, taken before a measurement.

    Args:
        model: the model to watch.
        seeded_grads: give every parameter a ``.grad`` first, as in the middle of training.
    """

    def __init__(self, model: nn.Module, *, seeded_grads: bool = False) -> None:
        self.model = model
        for parameter in model.parameters():
            if seeded_grads and parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 0.125)
        self.tensors = self._tensors()
        self.copies = {
            name: None if tensor is None else tensor.detach().clone() for name, tensor in self.tensors.items()
        }
        self.rest = self._rest()

    def _tensors(self) -> dict[str, Tensor | None]:
        """Parameters, gradients, buffers, and the state of the random number generator."""
        tensors: dict[str, Tensor | None] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"parameter {name}"], tensors[f"gradient {name}"] = parameter, parameter.grad
        tensors.update({f"buffer {name}": buffer for name, buffer in self.model.named_buffers()})
        return tensors

    def _rest(self) -> dict[str, object]:
        """Flags, hooks, versions of parameters, modes of torch."""
        rest: dict[str, object] = {
            "random numbers": torch.get_rng_state().tolist(),
            "gradient mode": torch.is_grad_enabled(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
            "function modes": len(_get_current_function_mode_stack()),
            "default dtype": torch.get_default_dtype(),
        }
        for name, parameter in self.model.named_parameters():
            rest[f"flags {name}"] = (parameter.requires_grad, parameter._version, parameter.retains_grad)
            rest[f"hooks {name}"] = dict(parameter._backward_hooks or {})
        for name, module in self.model.named_modules():
            rest[f"training {name}"] = module.training
            rest[f"hooks of module {name}"] = {hook: dict(getattr(module, hook, {})) for hook in _HOOKS}
            if not isinstance(module, torch.jit.ScriptModule):
                rest[f"attributes {name}"] = sorted(vars(module))
        return rest

    def changes(self) -> list[str]:
        """What is no longer as it was."""
        now, rest = self._tensors(), self._rest()
        changed = [name for name in self.tensors if now.get(name) is not self.tensors[name]]
        changed += [name for name, copy in self.copies.items() if not _same(now.get(name), copy)]
        return changed + [name for name in {*self.rest, *rest} if self.rest.get(name) != rest.get(name)]
