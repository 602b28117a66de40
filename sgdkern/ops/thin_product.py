"""Products of a large matrix with few vectors at once, which general matrix products are slow at."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sgdkern.ops.registry import Arguments, Cost, op

_DTYPES = (torch.float64, torch.float32)


def _check(matrix: Tensor, vectors: Tensor) -> None:
    if matrix.dim() != 2 or vectors.dim() != 2 or matrix.shape[1] != vectors.shape[0]:
        shapes = f"{list(matrix.shape)} and {list(vectors.shape)}"
        raise ValueError(f"thin_product: the matrix must be [M, K], the vectors [K, b], got {shapes}. Transpose one.")
    if matrix.dtype not in _DTYPES:
        raise NotImplementedError(f"thin_product: dtype must be one of {list(map(str, _DTYPES))}, got {matrix.dtype}.")
    if vectors.dtype != matrix.dtype or vectors.device != matrix.device:
        kinds = f"{matrix.dtype} on {matrix.device} and {vectors.dtype} on {vectors.device}"
        raise ValueError(f"thin_product: both must share dtype and device, got {kinds}. Convert one of them first.")


def _cost(matrix: Tensor, vectors: Tensor) -> Cost:
    """Two flops a multiply-add; both arguments read, and the result written, once."""
    (rows, features), columns = matrix.shape, vectors.shape[1]
    numbers = rows * features + (rows + features) * columns
    return Cost(2 * rows * features * columns, numbers * matrix.element_size())


def _sample_inputs(dtype: torch.dtype, device: torch.device) -> Iterator[Arguments]:
    """Matrices around every block's edge, by rows, by columns and by neither; one vector to more than a panel."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    sizes = [(1, 1, 1), (0, 3, 2), (4, 0, 3), (5, 4, 0), (33, 17, 16), (40, 300, 5), (70, 129, 33)]
    for rows, features, columns in sizes:
        yield normal(rows, features), normal(features, columns)
        yield normal(features, rows).T, normal(columns, features).T
    yield normal(50, 40)[1::2, ::3], normal(14, 20)[:, ::2]
    yield normal(64, 300)[:, 3:260], normal(257, 1).expand(-1, 16)


@op(dtypes=_DTYPES, check=_check, sample_inputs=_sample_inputs, cost=_cost)
def thin_product(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Products of a matrix with a block of vectors: Y = A X.

    Args:
        matrix: A [M, K], float64 or float32; rows or columns that lie together are read where they are.
        vectors: X [K, b], the same dtype; made for b of about 16.

    Returns:
        Y [M, b].

    Example:
        >>> thin_product(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [10.0]]))
        tensor([[21.],
                [43.]])
    """
    return matrix @ vectors
