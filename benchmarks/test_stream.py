"""Streams: what a pass costs beside an epoch of training, and 20,000 samples beside curvlinops.

    pip install curvlinops-for-pytorch                   # of the extra `peers`
    python -m pytest benchmarks/test_stream.py -s

Wall seconds on an otherwise idle machine, one core and two. Results go to benchmarks/results/stream.json.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgdkern.spectrum import noise_spectrum
from sgdkern.streaming import StreamingGradients

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "stream.json"
DATA = Path(os.environ.get("SGDKERN_DATA", HERE.parent.parent / "shared" / "data"))
LOSS = nn.CrossEntropyLoss()
# Samples in a batch: the fastest for training is taken, and what is usual is named beside it.
BATCHES, USUAL = (500, 1000, 2000), 128
CHUNK = 2500
LIMIT = 2 * 2**30
# For K's basis and its tiles, with 20,000 samples.
BOUND = 96 * 2**20


def keep(line: dict[str, Any]) -> None:
    """Put a line into the results, in the place of an earlier one of the same name."""
    known = json.loads(RESULT.read_text())["lines"] if RESULT.exists() else []
    lines = [other for other in known if (other["workload"], other["threads"]) != (line["workload"], line["threads"])]
    machine = {
        "cpu": f"x86-64, {os.cpu_count()} cores",
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    RESULT.write_text(json.dumps({"machine": machine, "lines": [*lines, line]}, indent=1) + "\n")
    print(json.dumps(line, indent=1))


def mlp(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    pairs = zip(sizes, sizes[1:], strict=False)
    return nn.Sequential(*[layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())][:-1])


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Let the process have no more memory of its own than this: heap, stacks and private mappings, used or not."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def memory_mib(name: str) -> int:
    """VmRSS (now) or VmHWM (at most so far) of this process."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) // 1024


def cifar() -> tuple[Tensor, Tensor]:
    """The 50,000 training images as bytes, [N, 3072], and their classes; decoded once."""
    archive, decoded = DATA / "cifar10-images.tar.xz", Path(tempfile.gettempdir()) / "sgdkern-cifar10.npz"
    if not decoded.exists():
        if not archive.exists():
            pytest.skip(f"no {archive}: set SGDKERN_DATA")
        from PIL import Image

        images, names = [], []
        with tarfile.open(archive) as members:
            for member in members:
                if "train/" in member.name and member.name.endswith(".jpg"):
                    picture = Image.open(io.BytesIO(members.extractfile(member).read()))
                    images.append(np.asarray(picture.convert("RGB")).reshape(-1))
                    names.append(member.name.split("/")[-2])
        np.savez(decoded, images=np.stack(images), targets=np.unique(names, return_inverse=True)[1])
    with np.load(decoded) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["targets"])


class Batches:
    """Batches of pixels in [0, 1], converted as they are asked for."""

    def __init__(self, images: Tensor, targets: Tensor, size: int) -> None:
        self.images, self.targets, self.size = images, targets, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in zip(self.images.split(self.size), self.targets.split(self.size), strict=True):
            yield images.float().div_(255), targets


def epoch(model: nn.Module, batches: Batches) -> None:
    """An epoch of plain SGD, not shuffled."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-9)
    for inputs, targets in batches:
        optimiser.zero_grad()
        LOSS(model(inputs), targets).backward()
        optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pass_in_epochs(threads: int, tmp_path: Path) -> None:
    images, targets = cifar()
    with num_threads(threads), at_most(LIMIT):
        keep(passes(images, targets, tmp_path) | {"threads": threads})


def passes(images: Tensor, targets: Tensor, folder: Path) -> dict[str, Any]:
    """The best of two rounds, a round being a new stream: its first pass and one of each kind."""
    model = mlp(3072, 512, 512, 10)
    epoch(model, Batches(images[:5000], targets[:5000], CHUNK))  # what is only slow the first time
    times = {size: seconds(lambda size=size: epoch(model, Batches(images, targets, size))) for size in BATCHES}
    best = min(times.values())
    line: dict[str, Any] = {
        "workload": f"3072-512-512-10, N = {len(images)}, a pass in epochs of training",
        "epoch_s": round(best, 3),
        "epoch_batch": min(times, key=times.__getitem__),
        "usual_epoch_s": round(seconds(lambda: epoch(model, Batches(images, targets, USUAL))), 3),
    }
    for name, cache in (("recomputed", None), ("cached", folder)):
        for _ in range(2):
            stream = StreamingGradients(model, LOSS, Batches(images, targets, CHUNK), cache=cache)
            taken = {"first": seconds(stream.squared_norms)}
            v, w = torch.randn(stream.num_params), torch.randn(len(images))
            taken |= {
                "G v": seconds(lambda stream=stream, v=v: stream.matvec(v)),
                "G^T w": seconds(lambda stream=stream, w=w: stream.rmatvec(w)),
                "Sigma v": seconds(lambda stream=stream, v=v: stream.covariance_matvec(v)),
            }
            for what, time_s in taken.items():
                key = f"{what}, {name}"
                line[key] = min(line.get(key, float("inf")), round(time_s / best, 3))
            del stream
    return line | {"limit_mib": LIMIT // 2**20, "peak_mib": memory_mib("VmHWM"), "bar": "0.8 cached, 1.4 recomputed"}


def twenty_thousand() -> tuple[nn.Module, Tensor, Tensor]:
    """784-1024-1024-10 and 20,000 samples: MNIST's first 4,000, five times with other noise."""
    from torchvision.datasets import MNIST

    data = MNIST(DATA / "mnist4k", train=True)
    inputs = (data.data.flatten(1).float() / 255).repeat(5, 1)
    inputs += 0.3 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    return mlp(784, 1024, 1024, 10), inputs, data.targets.repeat(5)


def ours(count: int, bound: int) -> dict[str, Any]:
    """The leading eigenvalues by K in a file, and what that takes."""
    model, inputs, targets = twenty_thousand()
    batches = list(zip(inputs.split(500), targets.split(500), strict=True))
    Path("/proc/self/clear_refs").write_text("5")  # the highest water mark is that of now
    before, start, cpu_start = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        stream = StreamingGradients(model, LOSS, batches, cache=folder, memory_bound=bound)
        found = noise_spectrum(stream, num_eigenvalues=count, memory_bound=bound, scratch=folder, strict=True)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
        "products": found.num_matvecs,
        "eigenvalues": found.eigenvalues.tolist(),
        "route": found.reason,
    }


def theirs(count: int, num_samples: int) -> dict[str, Any]:
    """The leading eigenvalues by curvlinops' empirical Fisher less ḡ ḡᵀ and scipy's eigsh, and what that takes."""
    import scipy.sparse.linalg
    from curvlinops import EFLinearOperator

    model, inputs, targets = twenty_thousand()
    batches = list(zip(inputs[:num_samples].split(1000), targets[:num_samples].split(1000), strict=True))
    Path("/proc/self/clear_refs").write_text("5")
    before, start, cpu_start = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(LOSS(model(x), y), parameters) for x, y in batches]
    mean = sum(torch.cat([g.flatten() for g in gradient]) for gradient in gradients).numpy() / len(batches)
    del gradients
    fisher = EFLinearOperator(model, LOSS, parameters, batches, check_deterministic=False).to_scipy()
    products = 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return fisher @ v - mean * (mean @ v.ravel())

    operator = scipy.sparse.linalg.LinearOperator(fisher.shape, matvec=product, dtype=np.float32)
    first = np.random.default_rng(0).standard_normal(len(mean)).astype(np.float32)
    options = {"k": count, "which": "LA", "tol": 1e-4, "v0": first, "return_eigenvectors": False}
    found = scipy.sparse.linalg.eigsh(operator, **options)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "before_mib": before,
        "peak_mib": memory_mib("VmHWM"),
        "products": products,
        "eigenvalues": found[::-1].tolist(),
    }


def alone(side: str, count: int, size: int, threads: int) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, side, str(count), str(size), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("threads", [1, 2])
def test_twenty_thousand_samples(threads: int) -> None:
    """Ten eigenvalues on both sides to the end; a hundred with curvlinops' cost from its own parts."""
    pytest.importorskip("curvlinops")
    few, few_theirs = alone("ours", 10, BOUND, threads), alone("theirs", 10, 20_000, threads)
    many, one_batch = alone("ours", 100, BOUND, threads), alone("theirs", 100, 1000, threads)
    line = compared(few, few_theirs, many, one_batch) | {"threads": threads}
    keep(line)
    assert min(line["ratio_10"], line["ratio_100"]) >= 4
    assert line["memory_ratio_100"] <= 0.1


def compared(
    few: dict[str, Any], few_theirs: dict[str, Any], many: dict[str, Any], one_batch: dict[str, Any]
) -> dict[str, Any]:
    """The line of results.

    curvlinops' memory does not grow with the number of batches, so for a hundred eigenvalues it is measured on one
    batch, to the end; so is the number of products. Their time is that number times a product on all samples.
    """
    np.testing.assert_allclose(few["eigenvalues"], few_theirs["eigenvalues"], rtol=2e-3)
    product_s = few_theirs["seconds"] / few_theirs["products"]
    line: dict[str, Any] = {"workload": "784-1024-1024-10, N = 20000", "product_s": round(product_s, 2)}
    for name, mine, other, other_s in (
        ("10", few, few_theirs, few_theirs["seconds"]),
        ("100", many, one_batch, product_s * one_batch["products"]),
    ):
        extra = [side["peak_mib"] - side["before_mib"] for side in (mine, other)]
        line |= {
            f"ours_{name}_s": round(mine["seconds"], 1),
            f"theirs_{name}_s": round(other_s, 1),
            f"theirs_{name}_products": other["products"],
            f"ratio_{name}": round(other_s / mine["seconds"], 1),
            f"extra_mib_{name}": extra,
            f"memory_ratio_{name}": round(extra[0] / extra[1], 3),
            f"whole_process_mib_{name}": [mine["peak_mib"], other["peak_mib"]],
        }
    return line | {"route": many["route"], "bar": "4 in time, 0.1 in memory"}


if __name__ == "__main__":
    side, count, size, threads = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    print(json.dumps({"ours": ours, "theirs": theirs}[side](count, size)))
