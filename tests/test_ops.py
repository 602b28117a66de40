"""Every operation of the registry, on all of its samples: the same laws for the reference and its compiled twins."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import dev_module
from torch.utils._pytree import tree_map_only

from sgdkern.ops import LIBRARIES, OPS, gram, max_places

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CASES = [
    pytest.param(op, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name, op in OPS.items()
    for dtype in op.dtypes
]

every_case = pytest.mark.parametrize(("op", "dtype"), CASES)
every_device = pytest.mark.parametrize("device", DEVICES)


def samples(op, dtype, device):
    return list(op.sample_inputs(dtype, torch.device(device)))


def gram_in_extended_precision(inputs, output_grads, constant_columns):
    """Sum (A A^T + c) * (D D^T) with NumPy's widest floats, an oracle even for float64."""
    wide = [[factor.double().numpy().astype(np.longdouble) for factor in side] for side in (inputs, output_grads)]
    return sum((a @ a.T + c) * (d @ d.T) for a, d, c in zip(*wide, map(int, constant_columns), strict=True))


def gram_positions_in_extended_precision(inputs, output_grads, constant_column):
    """G G^T of explicit gradients, and of a bias's."""
    a, b = (factor.double().numpy().astype(np.longdouble) for factor in (inputs, output_grads))
    flat = np.einsum("nti,nto->nio", a, b).reshape(len(a), a.shape[2] * b.shape[2])
    return flat @ flat.T + int(constant_column) * b.sum(1) @ b.sum(1).T


def patch_gradients_in_extended_precision(inputs, output_grads, kernel, stride, dilation):
    """Sum over positions and taps, one product of numbers a time and sample."""
    x, b = (factor.double().numpy().astype(np.longdouble) for factor in (inputs, output_grads))
    gradients = np.zeros((x.shape[0], b.shape[1], x.shape[1], *kernel), np.longdouble)
    for i, j in np.ndindex(*kernel):
        for row, column in np.ndindex(*b.shape[2:]):
            seen = x[:, :, row * stride[0] + i * dilation[0], column * stride[1] + j * dilation[1]]
            gradients[:, :, :, i, j] += b[:, :, row, column, None] * seen[:, None, :]
    return gradients.reshape(
        x.shape[0], gradients[0].size if len(x) else b.shape[1] * x.shape[1] * kernel[0] * kernel[1]
    )


def patch_gram_in_extended_precision(*args):
    """G G^T."""
    flat = patch_gradients_in_extended_precision(*args)
    return flat @ flat.T


def minibatch_norms_in_extended_precision(inputs, output_grads, constant_columns, indices):
    """Each minibatch's own Gram matrix, summed."""
    sums = [
        gram_in_extended_precision([a[some] for a in inputs], [d[some] for d in output_grads], constant_columns).sum()
        for some in indices
    ]
    return np.array(sums, np.longdouble)


def matvec_in_extended_precision(inputs, output_grads, vector):
    a, d, v = (tensor.double().numpy().astype(np.longdouble) for tensor in (inputs, output_grads, vector))
    return ((a @ v.T) * d).sum(1)


def rmatvec_in_extended_precision(inputs, output_grads, weights):
    a, d, w = (tensor.double().numpy().astype(np.longdouble) for tensor in (inputs, output_grads, weights))
    return (d * w[:, None]).T @ a


def with_products(kernel, weights):
    """The diagonal of K beside K W."""
    return np.concatenate([np.diag(kernel)[:, None], kernel @ weights.double().numpy().astype(np.longdouble)], 1)


def gram_matvec_in_extended_precision(*args):
    return with_products(gram_in_extended_precision(*args[:-1]), args[-1])


def linear_gram_matvec_in_extended_precision(inputs, output_grads, constant_column, weights):
    return gram_matvec_in_extended_precision([inputs], [output_grads], [constant_column], weights)


def patch_gram_matvec_in_extended_precision(*args):
    return with_products(patch_gram_in_extended_precision(*args[:-1]), args[-1])


def thin_product_in_extended_precision(matrix, vectors):
    a, x = (tensor.double().numpy().astype(np.longdouble) for tensor in (matrix, vectors))
    return a @ x


def narrow_linear_in_extended_precision(inputs, weight, bias):
    x, w = (tensor.double().numpy().astype(np.longdouble) for tensor in (inputs, weight))
    return x @ w.T + (0 if bias is None else bias.double().numpy())


def max_places_one_by_one(inputs, kernel, stride, padding, ceil_mode):
    """The numbers of one window at a time, in order."""
    shape = max_places.reference(inputs.to("meta"), kernel, stride, padding, ceil_mode).shape
    x, places = inputs.double().numpy(), np.zeros(shape, np.int64)
    for n, c, *output in np.ndindex(*shape):
        corner = [o * step - border for o, step, border in zip(output, stride, padding)]
        rows, columns = (
            range(max(0, first), min(first + window, size))
            for first, window, size in zip(corner, kernel, inputs.shape[2:])
        )
        window = [(i * inputs.shape[3] + j, x[n, c, i, j]) for i in rows for j in columns]
        no_numbers = [place for place, value in window if value != value]
        best = max(value for _, value in window)
        first = next((place for place, value in window if value == best), None)
        places[(n, c, *output)] = no_numbers[-1] if no_numbers else first
    return places


ORACLES = {
    "gram": gram_in_extended_precision,
    "gram_matvec": gram_matvec_in_extended_precision,
    "gram_positions": gram_positions_in_extended_precision,
    "linear_gram_matvec": linear_gram_matvec_in_extended_precision,
    "matvec": matvec_in_extended_precision,
    "max_places": max_places_one_by_one,
    "minibatch_norms": minibatch_norms_in_extended_precision,
    "narrow_linear": narrow_linear_in_extended_precision,
    "patch_gradients": patch_gradients_in_extended_precision,
    "patch_gram": patch_gram_in_extended_precision,
    "patch_gram_matvec": patch_gram_matvec_in_extended_precision,
    "rmatvec": rmatvec_in_extended_precision,
    "thin_product": thin_product_in_extended_precision,
}


# Of a sum of products, in the absolute values' sum: what compensated TF32 may lose at most. Each of at most three
# products on the way to an entry drops 2^-22 (small times small), cuts two operands by 2^-23 and truncates by 2^-23:
# 15 x 2^-23 in all. See docs/decisions/0006-tensor-cores.md.
COMPENSATED_TF32_LOSS = 2.0**-19


def assert_accurate(op, args, result, loss=None):
    """Hold the three-way rule: at most twice the plain reference's error, plus one rounding of the result's scale.

    Products on tensor cores may lose a share of the absolute values' sum besides.
    """
    if loss is None:
        loss = COMPENSATED_TF32_LOSS if result.is_cuda and result.dtype == torch.float32 else 0
    on_cpu = tree_map_only(torch.Tensor, torch.Tensor.cpu, args)
    truth = ORACLES[op.name](*on_cpu)
    reference = op.reference(*args)
    assert result.dtype == reference.dtype
    assert result.shape == truth.shape
    if not result.is_floating_point():
        assert np.array_equal(result.cpu().numpy(), truth)
        return

    def error(values):
        return np.abs(values.double().cpu().numpy() - truth).max()

    if truth.size:
        lost = loss * ORACLES[op.name](*tree_map_only(torch.Tensor, torch.abs, on_cpu)).max() if loss else 0
        assert error(result) <= 2 * error(reference) + torch.finfo(result.dtype).eps * np.abs(truth).max() + lost


@every_case
@every_device
def test_is_as_accurate_as_plain_pytorch(op, dtype, device):
    for args in samples(op, dtype, device):
        assert_accurate(op, args, op(*args))


@every_case
@every_device
def test_passes_opcheck(op, dtype, device):
    for args in samples(op, dtype, device)[:4]:
        torch.library.opcheck(op.overload, args)


@every_case
@every_device
def test_repeats_to_the_bit(op, dtype, device):
    for args in samples(op, dtype, device):
        assert torch.equal(op(*args), op(*args))


@every_case
def test_does_not_depend_on_the_number_of_threads(op, dtype):
    if not op.is_compiled("cpu"):
        pytest.skip("a promise of the compiled twin, which is not built")
    threads = torch.get_num_threads()
    try:
        for args in samples(op, dtype, "cpu"):
            results = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(op(*args))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


@every_case
def test_leaves_its_arguments_alone(op, dtype):
    for args in samples(op, dtype, "cpu"):
        before = tree_map_only(torch.Tensor, torch.clone, args)
        op(*args)
        flat, flat_before = torch.utils._pytree.tree_leaves(args), torch.utils._pytree.tree_leaves(before)
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(flat, flat_before, strict=True)
        )


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_meta_tensors_have_the_result_s_shape(op):
    for args in samples(op, torch.float32, "cpu"):
        on_meta = op(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), args))
        assert on_meta.shape == op(*args).shape


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_costs_something(op):
    for args in samples(op, torch.float32, "cpu"):
        cost = op.cost(*args)
        assert cost.flops >= 0
        assert cost.num_bytes >= op(*args).numel() * 4


def test_a_library_that_is_there_is_loaded():
    for library in LIBRARIES.values():
        assert library.reason is None or not library.path.exists() or torch.version.cuda is None


# The number of a boxed kernel's arguments is checked against the schema by PyTorch; their types only here.
CPP_TYPES = {
    "std::vector<Tensor>": "Tensor[]",
    "std::vector<bool>": "bool[]",
    "Tensor": "Tensor",
    "std::optional<Tensor>": "Tensor?",
    "bool": "bool",
    "std::vector<int64_t>": "SymInt[]",
    "int64_t": "int",
    "double": "float",
}
TWINS = sorted([*(ROOT / "csrc" / "cpu").glob("*.cpp"), *(ROOT / "csrc" / "cuda").glob("*.cu")])


@pytest.mark.parametrize("path", TWINS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_twins_take_the_types_of_the_schema(path):
    source = path.read_text()
    (function,) = re.findall(rf'library\.impl\("{path.stem}", TORCH_BOX\(&(\w+)\)\)', source)
    result, parameters = re.search(rf"(\w+) {function}\(([^)]*)\)", source).groups()
    arguments = [parameter.strip().rsplit(" ", 1) for parameter in parameters.split(",")]
    signature = ", ".join(f"{CPP_TYPES[kind]} {name}" for kind, name in arguments)
    assert f"({signature}) -> {CPP_TYPES[result]}" == OPS[path.stem].schema


def factors(num_samples, widths, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(num_samples, width, generator=generator, dtype=dtype) for width in widths]
    return normal[:-1], normal[1:], [True] * (len(widths) - 1)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 220),
    widths=st.lists(st.integers(0, 70), min_size=2, max_size=4),
    dtype=st.sampled_from(gram.dtypes),
    step=st.integers(1, 3),
    offset=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_gram_on_any_shape_and_stride(num_samples, widths, dtype, step, offset, transposed):
    generator = torch.Generator().manual_seed(num_samples)

    def strided(width):
        shape = (
            (width * step + offset, num_samples * step) if transposed else (num_samples * step, width * step + offset)
        )
        whole = torch.randn(shape, generator=generator)
        return (whole.T if transposed else whole)[::step, offset::step].to(dtype)[:, :width]

    args = ([strided(w) for w in widths[:-1]], [strided(w) for w in widths[1:]], [w % 2 == 0 for w in widths[1:]])
    result = gram(*args)
    # The a-priori bound of any order of summation: as many roundings as terms and factors, of the absolute values' sum.
    roundings = max(sum(pair) for pair in pairwise(widths)) + len(widths) + 3
    largest = gram_in_extended_precision([a.abs() for a in args[0]], [d.abs() for d in args[1]], args[2])
    error = np.abs(result.double().numpy() - gram_in_extended_precision(*args))
    assert (error <= roundings * torch.finfo(result.dtype).eps * largest).all()


def test_gram_is_symmetric_and_positive_semidefinite():
    kernel = gram(*factors(150, (20, 30, 4), torch.float64))
    assert torch.equal(kernel, kernel.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()


def test_gram_of_many_samples_is_that_of_fewer():
    factors = [torch.randn(1301, width, generator=torch.Generator().manual_seed(width)) for width in (53, 31, 4)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them have larger blocks
    try:
        whole = gram(factors[:-1], factors[1:], [True, False])  # packed in blocks
    finally:
        torch.set_num_threads(threads)
    fewer = [factor[:1000] for factor in factors]  # and at once
    assert torch.equal(whole[:1000, :1000], gram(fewer[:-1], fewer[1:], [True, False]))
    wide = [factor.double() for factor in factors]
    truth = gram.reference(wide[:-1], wide[1:], [True, False])
    plain = gram.reference(factors[:-1], factors[1:], [True, False])
    rounding = torch.finfo(whole.dtype).eps * truth.abs().max()
    assert (whole - truth).abs().max() <= 2 * (plain - truth).abs().max() + rounding


@pytest.mark.parametrize("num_samples", [40, 201])  # 40: one tile, and threads that pack slabs ahead of it
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_packed_in_slabs_of_features_is_that_of_fewer_samples(dtype, num_samples):
    if not gram.is_compiled("cpu"):
        pytest.skip("a promise of the compiled twin, which is not built")
    inputs, output_grads, constant_columns = factors(
        num_samples, (20_000, 9_000, 300) if num_samples == 40 else (2500, 2100, 300), dtype
    )
    few = gram([a[:5] for a in inputs], [d[:5] for d in output_grads], constant_columns)  # packed at once
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):  # alone, a slab's panels lie where those of the one before did
            torch.set_num_threads(count)
            assert torch.equal(gram(inputs, output_grads, constant_columns)[:5, :5], few)
    finally:
        torch.set_num_threads(threads)


def test_gram_keeps_what_is_not_finite_where_it_is():
    inputs, output_grads, constant_columns = factors(50, (6, 5))
    inputs[0][7, 2] = float("nan")
    clean = torch.isfinite(gram(inputs, output_grads, constant_columns))
    assert not clean[7].any()
    assert not clean[:, 7].any()
    keep = torch.arange(50) != 7
    assert clean[keep][:, keep].all()


def test_gram_of_float16_knows_subnormals_and_infinities():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = bits[torch.isfinite(bits)][:, None]
    one = torch.ones_like(values[:1])
    row = gram(
        [torch.cat([one, values[::16]])], [torch.ones(values[::16].shape[0] + 1, 1, dtype=torch.float16)], [False]
    )[0]
    assert torch.equal(row[1:], values[::16, 0].float())
    assert gram([torch.tensor([[float("inf")]], dtype=torch.float16)], [one], [False]).item() == float("inf")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a, d, c: ([], [], []), ValueError, "at least one layer"),
        (lambda a, d, c: (a, d[:1], c), ValueError, "one entry a layer, got 2, 1 and 2"),
        (lambda a, d, c: (a, [d[0], d[1][:3]], c), ValueError, r"share N, got \[4, 3\] and \[3, 2\]"),
        (lambda a, d, c: ([a[0][:, :, None], a[1]], d, c), ValueError, r"\[N, features\], got \[4, 3, 1\]"),
        (lambda a, d, c: ([a[0].double(), a[1]], d, c), ValueError, "share dtype"),
        (lambda a, d, c: ([a[0].int(), a[1]], d, c), NotImplementedError, "got torch.int32"),
    ],
)
def test_gram_says_what_is_wrong(change, error, text):
    with pytest.raises(error, match=text):
        gram(*change(*factors(4, (3, 5, 2))))


def test_gram_s_kernel_refuses_what_would_corrupt_memory():
    if not gram.is_compiled("cpu"):
        pytest.skip("the CPU library is not built")
    inputs, output_grads, constant_columns = factors(4, (3, 5, 2))
    for args in [
        (inputs, output_grads[:1], constant_columns),
        (inputs, [output_grads[0], output_grads[1][:3]], constant_columns),
        ([inputs[0], inputs[1][0]], output_grads, constant_columns),
        ([inputs[0], inputs[1].double()], output_grads, constant_columns),
        ([a.int() for a in inputs], [d.int() for d in output_grads], constant_columns),
        ([torch.ones(1, 1).expand(2**31, 1)], [torch.ones(1, 1).expand(2**31, 1)], [True]),
    ]:
        with pytest.raises(RuntimeError, match="gram"):
            gram.overload(*args)


def test_gram_survives_sizes_that_no_machine_holds():
    for factor in [torch.ones(1, 1).expand(10**9, 1), torch.ones(1).as_strided((2, 2**60), (0, 0))]:
        with pytest.raises(RuntimeError):
            gram([factor], [factor], [True])


def test_every_instruction_set_agrees_with_the_reference():
    native = dev_module("kernels")
    for dtype, function in [(torch.float32, native.gram_float32), (torch.float64, native.gram_float64)]:
        for args in samples(gram, dtype, "cpu"):
            inputs, output_grads, constant_columns = args
            dense = [[np.ascontiguousarray(f.numpy()) for f in side] for side in (inputs, output_grads)]
            for name in native.instruction_sets():
                one = torch.from_numpy(function(*dense, constant_columns, name, 1))
                assert_accurate(gram, args, one)
                assert torch.equal(one, torch.from_numpy(function(*dense, constant_columns, name, 3)))
