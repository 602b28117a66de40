"""The CUDA kernels run on the CPU: fibers for threads, a stand-in for matrix instructions.

Copies land when they are waited for, shared memory begins as NaN; where warps do not meet at a barrier or a matrix
instruction, the stand-in says so.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from native import ROOT, dev_module
from test_ops import COMPENSATED_TF32_LOSS, ORACLES, assert_accurate, factors, samples
from torch.utils._pytree import tree_map_only

from sgdkern.ops import OPS, gram, gram_positions, matvec, patch_gradients, patch_gram, rmatvec

# Multiprocessors, bytes of shared memory of a block and of a multiprocessor (CUDA C++ Programming Guide, technical
# specifications by compute capability).
H100 = (132, 227 << 10, 228 << 10)
A100 = (108, 163 << 10, 164 << 10)
RTX_4090 = (128, 99 << 10, 100 << 10)
ONE = (1, 163 << 10, 164 << 10)  # multiprocessor: large tiles, and every tile by one block
DEVICES = pytest.mark.parametrize("device", [H100, ONE], ids=["many", "one"])

# TF32 rounds both operands of a product by 2^-11 at most; three products lie on the way to an entry.
TF32_LOSS = 3 * (2 * 2.0**-11 + 2.0**-22) + COMPENSATED_TF32_LOSS
PRODUCTS = {
    "float32": (torch.float32, COMPENSATED_TF32_LOSS),
    "tf32": (torch.float32, TF32_LOSS),
    "bfloat16": (torch.bfloat16, COMPENSATED_TF32_LOSS),
    "float16": (torch.float16, COMPENSATED_TF32_LOSS),
    "float64": (torch.float64, 0),
}
every_product = pytest.mark.parametrize("product", PRODUCTS)


def bits(tensor):
    """A tensor as NumPy has it, with its strides; 16-bit numbers as integers."""
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()


def rows(tensor):
    return bits(tensor if tensor.stride(1) == 1 else tensor.contiguous())


def run_gram(product, args, device=H100):
    inputs, output_grads, constant_columns = args
    function = getattr(dev_module("cuda_kernels"), f"gram_{product}")
    return torch.from_numpy(
        function([rows(a) for a in inputs], [rows(d) for d in output_grads], constant_columns, device)
    )


def run_patch_gram(product, args, device=H100, budget=32 << 20):
    inputs, output_grads, *geometry = args
    function = getattr(dev_module("cuda_kernels"), f"patch_gram_{product}")
    return torch.from_numpy(function(bits(inputs), bits(output_grads), *geometry, budget, device))


def run_gram_positions(product, args, device=H100):
    inputs, output_grads, bias = args
    function = getattr(dev_module("cuda_kernels"), f"gram_positions_{product}")
    return torch.from_numpy(function(bits(inputs.contiguous()), bits(output_grads.contiguous()), bias, device))


@every_product
@DEVICES
def test_gram_is_as_accurate_as_plain_pytorch(product, device):
    dtype, loss = PRODUCTS[product]
    for args in [*samples(gram, dtype, "cpu"), factors(130, (12, 5), dtype), factors(65, (16, 33), dtype)]:
        result = run_gram(product, args, device)
        assert torch.equal(result, result.T)
        assert_accurate(gram, args, result, loss)


@every_product
@DEVICES
def test_gram_positions_are_as_accurate_as_plain_pytorch(product, device):
    """Tiles of whole samples, groups of several tiles, samples of several: small and large tiles."""
    dtype, loss = PRODUCTS[product]
    for args in samples(gram_positions, dtype, "cpu"):
        result = run_gram_positions(product, args, device)
        assert torch.equal(result, result.T)
        assert_accurate(gram_positions, args, result, loss)


def test_groups_of_samples_fill_tiles_where_all_multiprocessors_stay_busy():
    sizes = dev_module("cuda_kernels").group_sizes
    assert sizes(1000, 4, H100) == (16, 1)
    assert sizes(1000, 49, H100) == (5, 4)
    assert sizes(20, 49, H100) == (1, 1)
    assert sizes(3, 4, H100) == (3, 1)
    assert sizes(1000, 1000, H100) == (1, 16)


@every_product
def test_patch_gram_is_as_accurate_as_plain_pytorch(product):
    dtype, loss = PRODUCTS[product]
    for args in samples(patch_gram, dtype, "cpu"):
        in_tiles = product == "float32" and args[0].shape[1] < 70  # many taps take seconds
        for device, budget in [(H100, 32 << 20), *[(ONE, 1)] * in_tiles]:  # whole gradients, or a tile of them a time
            result = run_patch_gram(product, args, device, budget)
            assert torch.equal(result, result.T)
            assert_accurate(patch_gram, args, result, loss)


@every_product
def test_patch_gradients_are_as_accurate_as_plain_pytorch(product):
    dtype, loss = PRODUCTS[product]
    function = getattr(dev_module("cuda_kernels"), f"patch_gradients_{product}")
    for args in samples(patch_gradients, dtype, "cpu"):
        inputs, output_grads, *geometry = args
        result = torch.from_numpy(function(bits(inputs), bits(output_grads), *geometry))
        assert_accurate(patch_gradients, args, result, loss)


@every_product
def test_minibatch_norms_are_as_accurate_as_plain_pytorch(product):
    """Tiles of one minibatch, and of more than one tile; rows gathered, twice where a sample comes twice."""
    op = OPS["minibatch_norms"]
    dtype, loss = PRODUCTS[product]
    function = getattr(dev_module("cuda_kernels"), f"minibatch_norms_{product}")
    many = torch.arange(3 * 150).remainder(97).view(3, 150)
    for args in [*samples(op, dtype, "cpu"), (*factors(97, (40, 20), dtype), many)]:
        inputs, output_grads, constant_columns, indices = args
        if indices.shape[1]:
            sides = [[rows(factor) for factor in side] for side in (inputs, output_grads)]
            result = torch.from_numpy(function(*sides, constant_columns, indices.contiguous().numpy(), H100))
            assert_accurate(op, args, result, loss)


LINEAR = pytest.mark.parametrize("product", ["float32", "tf32", "float64"])


def run_linear(product, op, args, device=H100):
    function = getattr(dev_module("cuda_kernels"), f"{op.name}_{product}")
    inputs, output_grads, other = args
    return torch.from_numpy(function(rows(inputs), rows(output_grads), other.numpy(), device))


@LINEAR
@DEVICES
@pytest.mark.parametrize("op", [matvec, rmatvec], ids=["matvec", "rmatvec"])
def test_matvecs_are_as_accurate_as_plain_pytorch(op, product, device):
    dtype, loss = PRODUCTS[product]
    for args in samples(op, dtype, "cpu"):
        result = run_linear(product, op, args, device)
        assert torch.equal(result, run_linear(product, op, args, device))
        assert_accurate(op, args, result, loss)


def test_rmatvec_s_operands_are_read_without_bank_conflicts():
    """A warp reads four rows of eight neighbouring numbers: 4 bytes a lane, or 8 bytes and half a warp."""
    native = dev_module("cuda_kernels")
    for place, size, columns in [(native.turned_place_float32, 4, 8), (native.turned_place_float64, 8, 4)]:
        for first in range(0, 64, 8):
            banks = [
                (place(k, column * size // 16) + column * size % 16 + word) // 4 % 32
                for k in range(4)
                for column in range(first, first + columns)
                for word in range(0, size, 4)
            ]
            assert sorted(banks) == list(range(32))


@pytest.mark.parametrize("product", ["float32", "bfloat16", "float64"])
def test_rows_may_lie_anywhere(product):
    """Copies of 16, 8 and 4 bytes, and single numbers, by the alignment of rows."""
    dtype, loss = PRODUCTS[product]
    generator = torch.Generator().manual_seed(0)
    for offset, width in [(0, 64), (1, 33), (2, 37), (4, 36), (6, 26), (3, 5)]:
        whole = torch.randn(70, 80, generator=generator).to(dtype)
        args = ([whole[:, offset : offset + width]], [whole[:, offset : offset + 3].roll(1, 0)], [True])
        assert_accurate(gram, args, run_gram(product, args), loss)
    row = torch.randn(1, 40, generator=generator).to(dtype).expand(9, 40)
    assert_accurate(gram, ([row], [row], [False]), run_gram(product, ([row], [row], [False])), loss)


@DEVICES
def test_many_small_layers_are_one_launch_or_a_few(device):
    """Their queue of stages does not drain between layers; blocks share the layers where there are few tiles."""
    generator = torch.Generator().manual_seed(0)
    native = dev_module("cuda_kernels")
    for count, launches in [(40, 1), (56, 1), (57, 2), (130, 3)]:
        inputs = [torch.randn(7, 1 + i % 3, generator=generator) for i in range(count)]
        output_grads = [torch.randn(7, 2, generator=generator) for _ in range(count)]
        args = (inputs, output_grads, [i % 2 == 0 for i in range(count)])
        native.counts()
        result = run_gram("float32", args, device)
        parts = native.plan_float32(7, count, device)[4]
        assert parts == min(2 if device == ONE else 3 * 132, count // launches)  # blocks that the device holds
        summing = 0 if parts == 1 else 1
        assert native.counts()["blocks"] == launches * parts + summing
        assert_accurate(gram, args, result, COMPENSATED_TF32_LOSS)


def test_explicit_gradients_are_a_rank_k_update():
    native = dev_module("cuda_kernels")
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(70, 45, generator=generator) for _ in range(3)]
    result = native.gram_float32([part.numpy() for part in parts], [], [False] * 3, H100)
    whole = torch.cat(parts, 1)
    one = torch.ones(70, 1)
    assert_accurate(gram, ([whole], [one], [False]), torch.from_numpy(result), COMPENSATED_TF32_LOSS)


@every_product
def test_neither_the_order_of_warps_nor_the_run_changes_a_bit(product):
    """A missing barrier would show in one of the two orders."""
    native = dev_module("cuda_kernels")
    dtype = PRODUCTS[product][0]
    args = factors(100, (70, 40, 3), dtype)
    patches = samples(patch_gram, dtype, "cpu")[3]
    positions = samples(gram_positions, dtype, "cpu")[7]
    try:
        results = []
        for order in (False, True, True):
            native.last_warp_first(order)
            of_positions = [run_gram_positions(product, positions, device) for device in (H100, ONE)]
            of_gram = [run_gram(product, args, device) for device in (H100, ONE)]
            results.append((*of_gram, *of_positions, run_patch_gram(product, patches)))
    finally:
        native.last_warp_first(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("side", [0, 1, 2, 7, 8, 9, 23, 40])
def test_the_schedule_has_every_tile_of_the_triangle_once(side):
    places = dev_module("cuda_kernels").tiles(side)
    assert sorted(places) == [(i, j) for i in range(side) for j in range(i + 1)]


def test_the_schedule_keeps_tiles_together():
    """132 at a time need two bands of rows, 132 / 8 columns and a triangle's more; in order of rows they need 102."""
    places = dev_module("cuda_kernels").tiles(100)
    for begin in range(0, len(places) - 132, 500):
        rows_, columns = zip(*places[begin : begin + 132], strict=True)
        assert len(set(rows_)) + len(set(columns)) <= 2 * 8 + 132 // 8 + 8


@pytest.mark.parametrize("product", PRODUCTS)
def test_only_the_lower_triangle_is_computed(product):
    """Matrix instructions: tiles x stages of 128 bytes x four steps x blocks of a tile, three times if compensated."""
    native = dev_module("cuda_kernels")
    dtype = PRODUCTS[product][0]
    args = factors(130, (70, 20), dtype)
    native.counts()
    run_gram(product, args)
    counts = native.counts()
    depth = 128 // dtype.itemsize
    stages = -(-70 // depth) - (-20 // depth)
    times = {"float32": 3, "float64": 2}.get(product, 1)
    assert counts["matrix_instructions"] == 6 * stages * 4 * (64 // 16 * 64 // 8) * times


def test_shared_memory_is_read_without_bank_conflicts():
    native = dev_module("cuda_kernels")
    native.counts()
    for product in ("float32", "tf32", "bfloat16", "float16"):
        dtype = PRODUCTS[product][0]
        for device in (H100, ONE):
            run_gram(product, factors(200, (40, 20), dtype), device)
        run_patch_gram(product, samples(patch_gram, dtype, "cpu")[1])
        run_gram_positions(product, samples(gram_positions, dtype, "cpu")[6])
    counts = native.counts()
    assert counts["block_loads"] > 1000
    assert counts["bank_conflicts"] == 0


def test_doubles_are_read_without_bank_conflicts():
    """Half a warp reads 8 bytes a lane: four rows, four doubles of each, and each of the 32 banks once."""
    place = dev_module("cuda_kernels").chunk_place_float64
    for first in (0, 4, 8, 60):
        for chunk in (0, 2, 4, 6):
            banks = [
                (place(first + row, chunk + k // 2) + k % 2 * 8 + half) // 4 % 32
                for row in range(4)
                for k in range(4)
                for half in (0, 4)
            ]
            assert sorted(banks) == list(range(32))


@every_product
@pytest.mark.parametrize("device", [H100, A100, RTX_4090], ids=["sm_90", "sm_80", "sm_89"])
def test_launches_fit_their_device(product, device):
    native = dev_module("cuda_kernels")
    multiprocessors, most_of_a_block, most = device
    for num_samples in (1, 64, 65, 500, 1024, 4000, 20000):
        for num_layers in (1, 3, 500):
            tile, blocks, threads, shared, parts = getattr(native, f"plan_{product}")(num_samples, num_layers, device)
            side = -(-num_samples // tile)
            tiles = side * (side + 1) // 2
            assert shared <= most_of_a_block
            assert shared + 1024 <= most
            assert threads <= 1024
            assert 1 <= parts <= num_layers
            assert blocks <= tiles * parts
            assert blocks <= multiprocessors * (most // (shared + 1024))
            assert parts == 1 or parts * tiles <= multiprocessors * (most // (shared + 1024))
    assert native.patch_shared_bytes() <= most_of_a_block


def test_large_tiles_where_there_are_enough_of_them():
    plan = dev_module("cuda_kernels").plan_float32
    assert [plan(n, 3, H100)[0] for n in (500, 1000, 2000, 4000, 8000)] == [64, 64, 64, 128, 128]
    assert [plan(n, 3, RTX_4090)[0] for n in (1000, 8000)] == [64, 64]
    assert dev_module("cuda_kernels").plan_float64(8000, 3, H100)[0] == 64


@pytest.mark.parametrize("positive", [False, True])
def test_compensated_tf32_is_as_accurate_as_float32_where_many_features_are_summed(positive):
    """Root mean square errors; sums of positive terms are where truncating additions would drift."""
    inputs, output_grads, constant_columns = factors(64, (784, 300))
    if positive:
        inputs, output_grads = [inputs[0].abs()], [output_grads[0].abs()]
    args = (inputs, output_grads, constant_columns)
    truth = ORACLES["gram"](*args)

    def error(result):
        return float(np.sqrt(np.mean((result.double().numpy() - truth) ** 2)))

    in_float32 = sum_in_order(args)
    assert error(run_gram("float32", args)) <= error(in_float32)
    assert error(run_gram("tf32", args)) >= 20 * error(in_float32)


def sum_in_order(args):
    """K as plain float32 arithmetic has it, one feature after the other: what fused multiply-adds without blocks do."""
    totals = []
    for factor in (args[0][0], args[1][0]):
        total = torch.zeros(len(factor), len(factor))
        for column in factor.T:
            total += column[:, None] * column
        totals.append(total)
    return (totals[0] + float(args[2][0])) * totals[1]


def test_small_differences_survive_compensation():
    """Numbers that TF32 takes for equal: 1 + k 2^-20."""
    column = (1 + torch.arange(8) * 2.0**-20)[:, None]
    one = torch.ones(8, 1)
    result = run_gram("float32", ([column], [one], [False]))
    exact = column.double() @ column.double().T
    assert (result - exact).abs().max() <= 5 * 2.0**-23
    assert len(run_gram("tf32", ([column], [one], [False])).unique()) == 1


@pytest.mark.parametrize("product", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_is(product, value):
    inputs, output_grads, constant_columns = factors(70, (6, 5), PRODUCTS[product][0])
    inputs[0][7, 2] = value
    clean = torch.isfinite(run_gram(product, (inputs, output_grads, constant_columns)))
    assert not clean[7].any()
    assert not clean[:, 7].any()
    keep = torch.arange(70) != 7
    assert clean[keep][:, keep].all()


def test_float16_knows_subnormals():
    values = torch.arange(64, dtype=torch.int16).view(torch.float16)[:, None]
    column = torch.cat([torch.ones_like(values[:1]), values])
    one = torch.ones_like(column)
    assert torch.equal(run_gram("float16", ([column], [one], [False]))[0, 1:], values[:, 0].float())


def test_the_stand_in_shows_faults():
    native = dev_module("cuda_kernels")
    assert np.isnan(native.forgets_to_wait()).any()
    assert np.isnan(native.forgets_a_barrier()).any()
    for fault, text in [
        ("diverges_at_a_barrier", "__syncthreads was not reached"),
        ("diverges_in_a_warp", "was not reached by all threads of the warp"),
        ("leaves_shared_memory", "outside of shared memory"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            getattr(native, fault)()


@pytest.mark.slow
def test_no_kernel_spills_registers(tmp_path):
    """On sm_90, where each needs the most: the compiler's own report."""
    nvcc = shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")
    if nvcc is None:
        pytest.skip("no nvcc")
    torch_headers = Path(torch.__file__).parent / "include"
    includes = [f"-I{torch_headers}", f"-I{torch_headers / 'torch/csrc/api/include'}"]
    flags = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", "-O3", "-std=c++20", "-arch=sm_90", "-cubin"]
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        command = [nvcc, *flags, *includes, "-Xptxas", "-v", str(source), "-o", str(tmp_path / "cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
        assert spills
        assert set(spills) == {("0", "0")}


@pytest.mark.gpu
def test_float32_is_compensated_unless_the_user_allowed_tf32():
    args = tree_map_only(torch.Tensor, torch.Tensor.cuda, factors(200, (300, 64)))
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        results = []
        for allow in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allow
            results.append(gram(*args))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    on_cpu = factors(200, (300, 64))
    assert_accurate(gram, on_cpu, results[0].cpu(), COMPENSATED_TF32_LOSS)
    assert_accurate(gram, on_cpu, results[1].cpu(), TF32_LOSS)
    assert not torch.equal(*results)
