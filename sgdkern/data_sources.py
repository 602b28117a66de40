"""Where the images of a data set come from: scikit-learn, torchvision, or folders of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_CIFAR_SIDE = 32  # pixels


@dataclass(frozen=True)
class RawImages:
    """Images and labels as a source stores them, before any split or scaling.

    Attributes:
        train_images: uint8 [N, H, W] or [N, H, W, 3].
        train_labels: int64 [N].
        test_images: The same for the test part; None where the source has no split of its own.
        test_labels: int64 [M], or None.
        class_names: One name a class.
        largest: The pixel value that stands for full intensity.
    """

    train_images: np.ndarray[Any, np.dtype[np.uint8]]
    train_labels: np.ndarray[Any, np.dtype[np.int64]]
    test_images: np.ndarray[Any, np.dtype[np.uint8]] | None
    test_labels: np.ndarray[Any, np.dtype[np.int64]] | None
    class_names: tuple[str, ...]
    largest: float = 255.0


def _digits(root: Path | None, download: bool, image_size: int) -> RawImages:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels of 17 grey values; part of its package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return RawImages(
        bunch.images.astype(np.uint8), bunch.target.astype(np.int64), None, None, tuple("0123456789"), largest=16.0
    )


def _torchvision(kind: str) -> Callable[[Path | None, bool, int], RawImages]:
    """A loader of the torchvision data set with this class name."""

    def load(root: Path | None, download: bool, image_size: int) -> RawImages:
        import torchvision.datasets

        place = _needed_root(kind, root)
        source = getattr(torchvision.datasets, kind)
        try:
            parts = [source(str(place), train=train, download=download) for train in (True, False)]
        except RuntimeError as error:
            raise FileNotFoundError(
                f"load_data: {kind} was not found under {place} ({error}). "
                "Give the folder that holds it (--data-root), or allow the download (--download)."
            ) from error
        images = [np.asarray(part.data, dtype=np.uint8) for part in parts]
        labels = [np.asarray(part.targets, dtype=np.int64) for part in parts]
        return RawImages(images[0], labels[0], images[1], labels[1], tuple(str(name) for name in parts[0].classes))

    return load


def _cifar10(root: Path | None, download: bool, image_size: int) -> RawImages:
    """The files that torchvision knows, or folders of images: ``train`` and ``test``, one sub-folder a class."""
    if root is not None and (root / "train").is_dir() and (root / "test").is_dir():
        return _folder(root, download, _CIFAR_SIDE)
    return _torchvision("CIFAR10")(root, download, image_size)


def _folder(root: Path | None, download: bool, image_size: int) -> RawImages:
    """One sub-folder of images a class; with ``train`` and ``test`` folders where the user made the split."""
    place = _needed_root("folder", root)
    if not place.is_dir():
        raise FileNotFoundError(f"load_data: the folder of images was not found: {place}. Check --data-root.")
    if (place / "train").is_dir() and (place / "test").is_dir():
        images, labels, names = _image_folder(place / "train", image_size)
        test_images, test_labels, test_names = _image_folder(place / "test", image_size)
        if names != test_names:
            raise ValueError(f"load_data: train and test must hold the same classes, got {names} and {test_names}.")
        return RawImages(images, labels, test_images, test_labels, names)
    images, labels, names = _image_folder(place, image_size)
    return RawImages(images, labels, None, None, names)


def _image_folder(
    place: Path, image_size: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]]:
    """Images [N, size, size, 3], labels [N] and class names of one ImageFolder."""
    from PIL import Image
    from torchvision.datasets import ImageFolder

    if image_size < 1:
        raise ValueError(f"load_data: image_size must be at least 1, got {image_size}.")
    try:
        folder = ImageFolder(str(place))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"load_data: {place} must hold one sub-folder of images for each class. {error}"
        ) from error
    images = np.empty((len(folder), image_size, image_size, 3), dtype=np.uint8)
    for index, (path, _) in enumerate(folder.samples):
        try:
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)
        except OSError as error:
            raise ValueError(f"load_data: {path} cannot be read as an image ({error}). Mend or remove it.") from error
        images[index] = np.asarray(resized)
    return images, np.asarray(folder.targets, dtype=np.int64), tuple(folder.classes)


def _needed_root(name: str, root: Path | None) -> Path:
    """The data root, or the error that says it is missing."""
    if root is None:
        raise ValueError(f"load_data: {name} needs the folder that holds the data. Give root (--data-root).")
    return root


LOADERS: dict[str, Callable[[Path | None, bool, int], RawImages]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion-mnist": _torchvision("FashionMNIST"),
    "cifar10": _cifar10,
    "folder": _folder,
}
