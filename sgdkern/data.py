"""The data sets of the main job as plain tensors, and label noise whose truth is kept for scoring.

Everything that a run needs is in memory, in one frozen :class:`Dataset`; images keep their own uint8 copy, so that a
report can show the very samples whose labels it doubts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sgdkern.data_sources import LOADERS

Scaling = Literal["standard", "unit"]
NoiseKind = Literal["none", "symmetric", "incl", "pair"]

SCALINGS: tuple[str, ...] = get_args(Scaling)
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


# Sets the draw of the noise apart from a shuffle with the same seed, which would begin with the very samples drawn.
_NOISE = 0x6E6F697365


@dataclass(frozen=True)
class Dataset:
    """A labelled data set, split into a training and a test part.

    Attributes:
        name: Which data set it is.
        train_inputs: What the model sees, float32 [N, channels, height, width].
        train_labels: The labels as given, wrong ones included, int64 [N].
        true_labels: The right labels, int64 [N], used for scoring only; None where nobody knows them.
        test_inputs: float32 [M, channels, height, width].
        test_labels: int64 [M].
        class_names: One name a class.
        train_images: The training images as stored, uint8 [N, H, W] or [N, H, W, 3].
        scaling: How ``train_inputs`` were made from the images, in words.
        train_indices: Position of each training sample among the source's images (those of its training part, where it
            has one), int64 [N]: whatever is known of the images is known of the samples by it.
        num_source: How many images these are.
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    true_labels: Tensor | None
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    train_images: np.ndarray[Any, np.dtype[np.uint8]]
    scaling: str
    train_indices: np.ndarray[Any, np.dtype[np.int64]]
    num_source: int

    @property
    def num_train(self) -> int:
        """Number of training samples, N."""
        return int(self.train_inputs.shape[0])

    @property
    def num_test(self) -> int:
        """Number of test samples."""
        return int(self.test_inputs.shape[0])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, [channels, height, width]."""
        return tuple(self.train_inputs.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """Move the tensors to a device; the images stay where they are.

        Args:
            device: Where to.

        Returns:
            The same data set with its tensors there.
        """
        return replace(
            self,
            train_inputs=self.train_inputs.to(device),
            train_labels=self.train_labels.to(device),
            true_labels=None if self.true_labels is None else self.true_labels.to(device),
            test_inputs=self.test_inputs.to(device),
            test_labels=self.test_labels.to(device),
        )


def load_data(
    name: str = "digits",
    *,
    root: Path | str | None = None,
    download: bool = False,
    train_samples: int | None = None,
    test_samples: int | None = None,
    test_share: float = 0.2,
    image_size: int = 32,
    scaling: Scaling = "standard",
    seed: int = 0,
) -> Dataset:
    """Load one of the known data sets as tensors in memory.

    Inputs are x / largest, in [0, 1] (``scaling="unit"``), or (x / largest − m) / s with one m and one s, the mean and
    the standard deviation over all training pixels (``scaling="standard"``).

    Args:
        name: One of ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``folder``.
        root: Folder that holds the data (``--data-root``); not needed for ``digits``. For ``folder`` it holds one
            sub-folder of images a class, or ``train`` and ``test`` with such sub-folders.
        download: Whether torchvision may fetch what is missing.
        train_samples: Keep so many training samples, the same share of every class; None keeps all.
        test_samples: The same for the test part.
        test_share: Share held out for testing where the source has no split of its own.
        image_size: Side to which the images of ``folder`` are resized, as a square.
        scaling: How pixels become inputs.
        seed: Draws the split and the subsets.

    Returns:
        The data set, labels as the source gives them.

    Raises:
        ValueError: If the name, the scaling or a size cannot be used.
        FileNotFoundError: If the data are not under ``root``.
    """
    if name not in LOADERS:
        raise ValueError(f"load_data: name must be one of {', '.join(LOADERS)}, got {name!r}.")
    if scaling not in SCALINGS:
        raise ValueError(f"load_data: scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}.")
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"load_data: test_share must lie between 0 and 1, got {test_share}.")
    raw = LOADERS[name](None if root is None else Path(root), download, image_size)
    train_images, train_labels = raw.train_images, raw.train_labels
    train_indices = np.arange(len(train_labels))
    if raw.test_images is None or raw.test_labels is None:
        test_count = max(round(test_share * len(train_labels)), len(raw.class_names))
        keep, held_out = _stratified_split(train_labels, len(train_labels) - test_count, seed=seed)
        test_images, test_labels = train_images[held_out], train_labels[held_out]
        train_images, train_labels, train_indices = train_images[keep], train_labels[keep], train_indices[keep]
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
    if train_samples is not None and train_samples < len(train_labels):
        keep, _ = _stratified_split(train_labels, train_samples, seed=seed + 1)
        train_images, train_labels, train_indices = train_images[keep], train_labels[keep], train_indices[keep]
    if test_samples is not None and test_samples < len(test_labels):
        keep, _ = _stratified_split(test_labels, test_samples, seed=seed + 2)
        test_images, test_labels = test_images[keep], test_labels[keep]

    train_inputs, test_inputs = _as_inputs(train_images, raw.largest), _as_inputs(test_images, raw.largest)
    words = f"pixel / {raw.largest:g}, in [0, 1]"
    if scaling == "standard":
        mean, deviation = float(train_inputs.double().mean()), float(train_inputs.double().std())
        train_inputs, test_inputs = (train_inputs - mean) / deviation, (test_inputs - mean) / deviation
        words = f"(pixel / {raw.largest:g} − {mean:.4f}) / {deviation:.4f}: mean and deviation of all training pixels"
    return Dataset(
        name=name,
        train_inputs=train_inputs,
        train_labels=torch.from_numpy(train_labels),
        true_labels=None,
        test_inputs=test_inputs,
        test_labels=torch.from_numpy(test_labels),
        class_names=raw.class_names,
        train_images=np.ascontiguousarray(
            train_images if raw.largest == 255.0 else _full_range(train_images, raw.largest)
        ),
        scaling=words,
        train_indices=train_indices,
        num_source=len(raw.train_labels),
    )


def corrupt_labels(
    labels: Tensor, *, rate: float, kind: NoiseKind, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Replace a share of the labels; exactly round(ρ N) samples are drawn.

    ``symmetric`` gives each drawn sample another label, uniformly among the others (all of them are then wrong);
    ``incl`` a label drawn from all classes, the right one included (about 1 − 1/classes of them are then wrong);
    ``pair`` the next class, y + 1 modulo the number of classes.

    Args:
        labels: The right labels, int64 [N].
        rate: ρ, the share of samples drawn, in [0, 1].
        kind: Which noise; ``none`` changes nothing.
        num_classes: Number of classes.
        generator: Source of randomness, on the CPU.

    Returns:
        The labels with noise, int64 [N]; ``labels`` itself is left alone.

    Raises:
        ValueError: If the rate, the kind or the labels cannot be used.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"corrupt_labels: kind must be one of {', '.join(NOISE_KINDS)}, got {kind!r}.")
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"corrupt_labels: rate must be a share between 0 and 1, got {rate}.")
    if num_classes < 2:
        raise ValueError(f"corrupt_labels: wrong labels need at least two classes, got {num_classes}.")
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(
            f"corrupt_labels: labels must lie in 0 … {num_classes - 1}, got {int(labels.min())} … {int(labels.max())}."
        )
    noisy = labels.clone()
    count = 0 if kind == "none" else round(rate * labels.shape[0])
    drawn = torch.randperm(labels.shape[0], generator=generator)[:count]
    if kind == "symmetric":
        noisy[drawn] = (labels[drawn] + torch.randint(1, num_classes, (count,), generator=generator)) % num_classes
    elif kind == "incl":
        noisy[drawn] = torch.randint(0, num_classes, (count,), generator=generator)
    elif kind == "pair":
        noisy[drawn] = (labels[drawn] + 1) % num_classes
    return noisy


def with_label_noise(data: Dataset, *, rate: float, kind: NoiseKind, seed: int = 0) -> Dataset:
    """Put noise on the training labels and keep the right ones in ``true_labels``.

    Args:
        data: A data set whose labels are taken to be right.
        rate: ρ, the share of samples drawn.
        kind: Which noise, see :func:`corrupt_labels`; ``none`` leaves the data as they are, the truth unknown.
        seed: Draws the samples and their labels.

    Returns:
        The data set with noisy ``train_labels``.
    """
    if kind == "none":
        return data
    noisy = corrupt_labels(
        data.train_labels,
        rate=rate,
        kind=kind,
        num_classes=data.num_classes,
        generator=torch.Generator().manual_seed(int(np.random.SeedSequence([seed, _NOISE]).generate_state(1)[0])),
    )
    return replace(data, train_labels=noisy, true_labels=data.train_labels)


def _stratified_split(
    labels: np.ndarray[Any, np.dtype[np.int64]], count: int, *, seed: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Split the indices into ``count`` and the rest, every class in the same proportion, each part sorted."""
    from sklearn.model_selection import train_test_split

    classes = len(np.unique(labels))
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if count < classes or len(labels) - count < classes or smallest < 2:
        raise ValueError(
            f"load_data: a stratified split of {len(labels)} samples into {count} and {len(labels) - count} needs "
            f"at least two samples of each class and one of each of the {classes} classes on both sides; the smallest "
            f"class has {smallest}. Keep more samples or merge the rare classes."
        )
    kept, rest = train_test_split(np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed)
    return np.sort(kept), np.sort(rest)


def _as_inputs(images: np.ndarray[Any, np.dtype[np.uint8]], largest: float) -> Tensor:
    """Images as float32 [N, channels, height, width] in [0, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(images)).float() / largest
    return values.unsqueeze(1) if values.dim() == 3 else values.permute(0, 3, 1, 2).contiguous()


def _full_range(images: np.ndarray[Any, np.dtype[np.uint8]], largest: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Stretch pixel values 0 … largest to 0 … 255, for showing."""
    return np.round(images.astype(np.float64) * (255.0 / largest)).astype(np.uint8)
