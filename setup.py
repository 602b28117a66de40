"""Builds the two plain libraries sgdkern/_lib/{cpu,cuda}.so: libtorch's stable ABI only, no Python API."""

import os
import shutil
import sys
from glob import glob
from pathlib import Path

CUDA_HOME = os.environ.get("CUDA_HOME") or ("/usr/local/cuda" if Path("/usr/local/cuda").is_dir() else None)
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # before torch looks for it

import torch  # noqa: E402
from setuptools import Extension, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402

STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
CXX = [*STABLE, "-O3", "-std=c++20", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")


def missing(target: str) -> str | None:
    """Why a target cannot be built here, None when it can."""
    if not shutil.which(os.environ.get("CXX", "c++")):
        return "no C++ compiler found (set CXX)"
    if target == "cpu":
        return None
    if not cpp_extension.CUDA_HOME or not Path(cpp_extension.CUDA_HOME, "bin", "nvcc").exists():
        return "no nvcc found (set CUDA_HOME)"
    return None if torch.version.cuda else "this torch was built without CUDA"


def extensions() -> list[Extension]:
    """The libraries that SGDKERN_BUILD=auto|cpu|cuda|none asks for and this machine can build."""
    choice = os.environ.get("SGDKERN_BUILD", "auto")
    targets = {"auto": ["cpu", "cuda"], "cpu": ["cpu"], "cuda": ["cpu", "cuda"], "none": []}[choice]
    make = {"cpu": cpp_extension.CppExtension, "cuda": cpp_extension.CUDAExtension}
    flags = {"cpu": {"cxx": CXX}, "cuda": {"cxx": CXX, "nvcc": [*STABLE, "-DUSE_CUDA", "-O3", "-std=c++20"]}}
    found = []
    for target in targets:
        sources = sorted(glob(f"csrc/{target}/*.c*"))
        if reason := missing(target):
            if choice != "auto":
                raise SystemExit(f"sgdkern: SGDKERN_BUILD={choice}, but {reason}")
            print(f"sgdkern: {target} kernels not built, the references serve instead: {reason}", file=sys.stderr)
        elif sources:
            found.append(make[target](f"sgdkern._lib.{target}", sources, extra_compile_args=flags[target],
                                      py_limited_api=True, optional=choice == "auto"))  # fmt: skip
    return found


class PlainWheel(bdist_wheel):
    """One wheel for every Python: the libraries have no Python API."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return ("py3", "none", super().get_tag()[2])


BUILD = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
setup(ext_modules=extensions(), cmdclass={"build_ext": BUILD, "bdist_wheel": PlainWheel})
