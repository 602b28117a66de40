"""Labelled data as files: folders of images by class, CSV and parquet tables, npz archives."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
LABEL_NAMES = ("label", "labels", "target", "targets", "class", "y")
INPUT_NAMES = ("inputs", "X", "x", "features", "embeddings", "images", "data")


@dataclass(frozen=True)
class LabelledData:
    """Samples with labels, as read from files.

    Attributes:
        inputs: [N, ...] float32.
        labels: [N] integers or strings.
        names: [N] what to call a sample: its path in the folder, or its row counted from 0.
        sources: [N] who gave the label, or None.
        images: [N, H, W] or [N, H, W, 3] uint8 to look at, or None.
        origin: the file or folder.
        features: [F] what the columns of `inputs` are called, or None where the inputs are no table.
    """

    inputs: Array
    labels: Array
    names: Array
    sources: Array | None
    images: Array | None
    origin: Path
    features: tuple[str, ...] | None = None


def read_labelled(
    path: Path,
    *,
    label_column: str | None = None,
    source_column: str | None = None,
    ignore: Sequence[str] = (),
    image_size: int = 32,
) -> LabelledData:
    """Read a data set by what the path is.

    Args:
        path: a folder with one subfolder of images a class, or a .csv, .parquet or .npz file.
        label_column: column (array of an npz) with the labels; None to look for a usual name.
        source_column: column (array) that says who gave each label; None for none.
        ignore: columns that are no features.
        image_size: side in pixels to which images of a folder are resized.

    Returns:
        The data.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the kind is not known, or the content cannot be used.
    """
    if not path.exists():
        raise FileNotFoundError(f"read_labelled: no file or folder at {path}.")
    if path.is_dir():
        return _read_images(path, image_size)
    if path.suffix == ".npz":
        return _read_npz(path, label_column, source_column)
    if path.suffix in (".csv", ".tsv"):
        header, columns = _read_csv(path)
    elif path.suffix in (".parquet", ".pq"):
        header, columns = _read_parquet(path)
    else:
        raise ValueError(
            f"read_labelled: data must be a folder of images by class, .csv, .tsv, .parquet or .npz, got {path.name}."
        )
    label = _find(header, label_column, LABEL_NAMES, "label", path)
    source = None if source_column is None else _find(header, source_column, (), "source", path)
    unknown = sorted(set(ignore) - set(header))
    if unknown:
        raise ValueError(f"read_labelled: no column {unknown[0]!r} to ignore in {path.name}; there are {_few(header)}.")
    features = [name for name in header if name not in (label, source, *ignore)]
    if not features:
        raise ValueError(f"read_labelled: {path.name} must have feature columns beside the labels, got none.")
    inputs = np.stack([_numbers(columns[name], name, path) for name in features], axis=1)
    labels = _labels(columns[label], path)
    sources = None if source is None else np.asarray(columns[source])
    return LabelledData(inputs, labels, np.arange(len(labels)), sources, None, path, tuple(features))


def _read_images(path: Path, size: int) -> LabelledData:
    """Read a folder with one subfolder of images a class."""
    files = sorted(file for file in path.glob("*/**/*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise ValueError(
            f"read_labelled: {path} must hold one subfolder of images a class, found no images in subfolders. "
            f"Known kinds: {', '.join(IMAGE_SUFFIXES)}."
        )
    images = np.stack([_read_image(file, size) for file in files])
    relative = [file.relative_to(path) for file in files]
    labels = np.array([parts.parts[0] for parts in relative])
    inputs = np.moveaxis(images, -1, 1).astype(np.float32) / 255
    return LabelledData(inputs, labels, np.array([name.as_posix() for name in relative]), None, images, path)


def _read_image(file: Path, size: int) -> Array:
    """Read one image as uint8 [size, size, 3]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("read_labelled: images need Pillow: `pip install 'sgdkern[vision]'`.") from error
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except OSError as error:
        raise ValueError(f"read_labelled: {file} is no readable image. Mend it or move it away. ({error})") from error


def _read_npz(path: Path, label_name: str | None, source_name: str | None) -> LabelledData:
    """Read arrays from an npz file; nothing in it is unpickled."""
    with np.load(path, allow_pickle=False) as archive:
        header = list(archive.files)
        label = _find(header, label_name, LABEL_NAMES, "label", path)
        name = _find([key for key in header if key != label], None, INPUT_NAMES, "input", path)
        inputs, labels = archive[name], _labels(archive[label], path)
        sources = None if source_name is None else archive[_find(header, source_name, (), "source", path)]
    if inputs.ndim < 2 or len(inputs) != len(labels):
        raise ValueError(
            f"read_labelled: {name} of {path.name} must be [N, ...] with one row a label, "
            f"got {list(inputs.shape)} and {len(labels)} labels."
        )
    if inputs.dtype.kind not in "fiub":
        raise ValueError(f"read_labelled: {name} of {path.name} must be numbers, got {inputs.dtype}.")
    pictures = inputs.dtype == np.uint8 and (inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[3] == 3))
    values = inputs.astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0, 0])
        raise ValueError(f"read_labelled: {name} of {path.name} must be finite, got NaN or infinity in row {row}.")
    columns = tuple(f"{name}[{place}]" for place in range(values.shape[1])) if values.ndim == 2 else None
    images = inputs if pictures else None
    return LabelledData(values, labels, np.arange(len(labels)), sources, images, path, columns)


def _read_csv(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Read a table of text, its first line the names of the columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    rows = [row for row in rows if row]
    if len(rows) < 2:
        raise ValueError(
            f"read_labelled: {path.name} must have a line of column names and data, got {len(rows)} lines."
        )
    header = rows[0]
    if len(set(header)) < len(header):
        raise ValueError(f"read_labelled: the column names of {path.name} must differ, got {_few(header)}.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(
                f"read_labelled: line {number} of {path.name} has {len(row)} cells for {len(header)} columns."
            )
    return header, {name: list(cells) for name, cells in zip(header, zip(*rows[1:], strict=True), strict=True)}


def _read_parquet(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Read a parquet table; a column of vectors (embeddings) becomes one column a component."""
    try:
        import pandas

        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError("read_labelled: parquet needs pyarrow: `pip install 'sgdkern[parquet]'`.") from error
    columns: dict[str, Any] = {}
    for name in map(str, frame.columns):
        cells = frame[name].tolist()
        if not cells or not isinstance(cells[0], (np.ndarray, list)):
            columns[name] = cells
            continue
        lengths = {len(cell) if isinstance(cell, (np.ndarray, list)) else 0 for cell in cells}
        if len(lengths) > 1:
            raise ValueError(
                f"read_labelled: the vectors of column {name!r} of {path.name} must have one length, "
                f"got {sorted(lengths)[:5]}."
            )
        columns |= {f"{name}[{place}]": [cell[place] for cell in cells] for place in range(lengths.pop())}
    return list(columns), columns


def _find(names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, path: Path) -> str:
    """Return the wanted name, or the only usual one."""
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"read_labelled: no {what} column {wanted!r} in {path.name}; there are {_few(names)}.")
        return wanted
    found = [name for name in names if name.lower() in {word.lower() for word in usual}]
    if len(found) != 1:
        raise ValueError(
            f"read_labelled: the {what} column of {path.name} must be named, found {_few(found)} among "
            f"{_few(names)}. Say which one it is."
        )
    return found[0]


def _numbers(cells: Sequence[Any], name: str, path: Path) -> Array:
    """Return a column as float32, saying where it is not a finite number."""
    try:
        values = np.asarray(cells, dtype=np.float64)
    except (TypeError, ValueError):
        row = next(index for index, cell in enumerate(cells) if not _holds(float, cell))
        raise ValueError(
            f"read_labelled: feature columns must be numbers, got {cells[row]!r} in column {name!r}, row {row} "
            f"of {path.name}. Leave the column out (ignore), or encode it."
        ) from None
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise ValueError(
            f"read_labelled: features must be finite, got {cells[row]!r} in column {name!r}, row {row} of {path.name}. "
            "Fill the gap or drop the row."
        )
    return values.astype(np.float32)


def _labels(cells: Sequence[Any], path: Path) -> Array:
    """Return labels as integers where all are, else as strings; no label may be missing."""
    values = np.asarray(cells)
    if values.ndim != 1:
        raise ValueError(f"read_labelled: labels of {path.name} must be one a sample, got {list(values.shape)}.")
    missing = [index for index, cell in enumerate(values.tolist()) if cell is None or cell == "" or cell != cell]
    if missing:
        raise ValueError(f"read_labelled: every row of {path.name} must have a label, row {missing[0]} has none.")
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    texts = [str(cell) for cell in values.tolist()]
    if all(_holds(int, text) for text in texts):
        return np.array([int(text) for text in texts])
    return np.array(texts)


def _holds(kind: Callable[[Any], Any], cell: Any) -> bool:
    """Say whether a cell can be read as that kind of number."""
    try:
        kind(cell)
    except (TypeError, ValueError):
        return False
    return True


def _few(names: Sequence[str]) -> str:
    """Name the first eight."""
    return (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "none"
