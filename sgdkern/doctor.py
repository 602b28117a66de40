"""What this installation runs on: per operation and device compiled or reference, and how to build what is missing."""

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sgdkern.ops import LIBRARIES, OPS

_BUILD = "Then run `make build` in a checkout, or install again from source."


@dataclass(frozen=True)
class Diagnosis:
    """The facts about an installation.

    Attributes:
        versions: Of Python, PyTorch, and the CUDA that PyTorch was built with (None for a CPU build).
        processor: The CPU's architecture, PyTorch's number of threads, and the instruction set that PyTorch uses on it.
        gpus: The names of the CUDA devices that PyTorch sees.
        libraries: Why each compiled library is not in use, None where it is.
        operations: For each operation, "compiled" or "reference" on each device.
        remedies: What to do to have everything compiled that can be; empty when nothing is missing.
    """

    versions: dict[str, str | None]
    processor: dict[str, str | int]
    gpus: tuple[str, ...]
    libraries: dict[str, str]
    operations: dict[str, dict[str, str]]
    remedies: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version or 'none'}" for name, version in self.versions.items())
        processor = ", ".join(f"{name} {value}" for name, value in self.processor.items())
        rows = {"versions": versions, "processor": processor, "gpus": ", ".join(self.gpus) or "none"}
        rows |= {f"{target}.so": state for target, state in self.libraries.items()}
        for name, devices in self.operations.items():
            rows[name] = ", ".join(f"{device} {kind}" for device, kind in devices.items())
        width = max(map(len, rows)) + 2
        lines = [f"{name:{width}}{text}" for name, text in rows.items()]
        return "\n".join([*lines, *self.remedies])


def _remedies() -> tuple[str, ...]:
    """One sentence for each library that could be built and is not."""
    remedies = []
    if reason := LIBRARIES["cpu"].reason:
        found = shutil.which(os.environ.get("CXX", "c++"))
        first = "" if found else "Install a C++ compiler, or name it in CXX. "
        remedies.append(f"The CPU kernels are not in use ({reason}). {first}{_BUILD}")
    if (reason := LIBRARIES["cuda"].reason) and torch.version.cuda:
        where = f"Install the CUDA {torch.version.cuda} toolkit with nvcc, and name its folder in CUDA_HOME. {_BUILD}"
        remedies.append(f"The CUDA kernels are not in use ({reason}); they matter with a GPU only. {where}")
    return tuple(remedies)


def diagnose() -> Diagnosis:
    """Look at this installation; builds, prints and changes nothing.

    Returns:
        What was found.
    """
    return Diagnosis(
        versions={"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        processor={
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        libraries={target: library.reason or "in use" for target, library in LIBRARIES.items()},
        operations={
            name: {device: "compiled" if op.is_compiled(device) else "reference" for device in ("cpu", "cuda")}
            for name, op in OPS.items()
        },
        remedies=_remedies(),
    )


if __name__ == "__main__":
    print(diagnose())
