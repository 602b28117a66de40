"""Builds the two plain libraries sgdkern/_lib/{cpu,cuda}.so: libtorch's stable ABI only, no Python API."""

import os
import shutil
import subprocess
from glob import glob

if "CUDA_HOME" not in os.environ and os.path.isdir("/usr/local/cuda"):
    os.environ["CUDA_HOME"] = "/usr/local/cuda"  # before torch looks for it
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.errors import CompileError
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-O3", "-std=c++20"]
FLAGS = {"cxx": [*ABI, "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi"], "nvcc": [*ABI, "-DUSE_CUDA"]}
CHOICE = os.environ.get("SGDKERN_BUILD", "auto")
SOURCES = {"cpu": sorted(glob("csrc/cpu/*.cpp")), "cuda": sorted(glob("csrc/cuda/*.cu"))}


def missing(target: str) -> str | None:
    """Why a target cannot be built here, None when it can."""
    if (no_compiler := not shutil.which(os.environ.get("CXX", "c++"))) or target == "cpu":
        return "no C++ compiler found (name one in CXX)" if no_compiler else None
    if not (cuda := torch.version.cuda) or not shutil.which(nvcc := f"{CUDA_HOME}/bin/nvcc"):
        return "no nvcc found (name its folder in CUDA_HOME)" if cuda else "this PyTorch was built without CUDA"
    fits = f"release {cuda.split('.')[0]}." in subprocess.check_output([nvcc, "--version"], text=True)
    return None if fits else f"nvcc is not of CUDA {cuda}, as this PyTorch is"


def libraries(target: str) -> list[Extension]:
    """The target's library, or none and a line that says why."""
    if CHOICE == "auto" and (reason := missing(target)):
        print(f"sgdkern: {target} kernels not built, the references serve instead: {reason}")
        return []
    make = CppExtension if target == "cpu" else CUDAExtension
    options = {"extra_compile_args": FLAGS, "py_limited_api": True, "optional": CHOICE == "auto"}
    return [make(f"sgdkern._lib.{target}", SOURCES[target], **options)]


class Build(BuildExtension):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except RuntimeError as error:
            raise CompileError from error  # which for an optional library is only reported


class PlainWheel(bdist_wheel):  # one for every Python
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


COMMANDS = {"build_ext": Build.with_options(no_python_abi_suffix=True), "bdist_wheel": PlainWheel}
TARGETS = {"auto": SOURCES, "cpu": ["cpu"], "cuda": SOURCES, "none": []}[CHOICE]
setup(ext_modules=[library for target in TARGETS for library in libraries(target)], cmdclass=COMMANDS)
