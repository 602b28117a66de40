"""The data sets as tensors, and label noise against its definition."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgdkern.data import NOISE_KINDS, corrupt_labels, load_data, with_label_noise
from sgdkern.data_sources import LOADERS

DATA_ROOT = Path(os.environ.get("SGDKERN_DATA", Path(__file__).parents[2] / "shared" / "data"))


def labels_of(count: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def noisy(labels: torch.Tensor, rate: float, kind: str, classes: int, seed: int = 0) -> torch.Tensor:
    return corrupt_labels(
        labels, rate=rate, kind=kind, num_classes=classes, generator=torch.Generator().manual_seed(seed)
    )


# --- label noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.35, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_exactly_the_rounded_share_is_wrong(kind: str, rate: float, count: int) -> None:
    labels = labels_of(count, 10)
    wrong = noisy(labels, rate, kind, 10) != labels
    assert int(wrong.sum()) == round(rate * count)


def test_symmetric_noise_is_uniform_among_the_other_labels() -> None:
    labels = torch.full((90_000,), 3)
    counts = torch.bincount(noisy(labels, 1.0, "symmetric", 10), minlength=10).double()
    assert counts[3] == 0
    others = counts[torch.arange(10) != 3]
    chi_squared = float(((others - 10_000) ** 2 / 10_000).sum())
    assert chi_squared < 26.1  # the 99.9 % point of chi-squared with 8 degrees of freedom


def test_incl_noise_may_hit_the_right_label() -> None:
    labels = labels_of(40_000, 10)
    share = float((noisy(labels, 0.5, "incl", 10) != labels).double().mean())
    assert abs(share - 0.45) < 4 * (0.1 * 0.9 * 0.5 / 40_000) ** 0.5  # 4 standard deviations of a binomial share


def test_pair_noise_is_the_next_class() -> None:
    labels = labels_of(500, 7)
    changed = noisy(labels, 0.4, "pair", 7)
    wrong = changed != labels
    assert torch.equal(changed[wrong], (labels[wrong] + 1) % 7)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_is_repeatable_and_leaves_its_input_alone(kind: str) -> None:
    labels = labels_of(200, 10)
    before = labels.clone()
    assert torch.equal(noisy(labels, 0.5, kind, 10, seed=1), noisy(labels, 0.5, kind, 10, seed=1))
    assert torch.equal(labels, before)
    assert kind == "none" or not torch.equal(noisy(labels, 0.5, kind, 10, seed=1), noisy(labels, 0.5, kind, 10, seed=2))


@pytest.mark.parametrize(
    ("rate", "kind", "classes", "words"),
    [
        (1.5, "symmetric", 10, "between 0 and 1"),
        (0.5, "flip", 10, "kind must be one of"),
        (0.5, "pair", 1, "two classes"),
        (0.5, "pair", 5, "must lie in 0 … 4"),
    ],
)
def test_impossible_noise_is_refused(rate: float, kind: str, classes: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        noisy(torch.tensor([0, 9]), rate, kind, classes)


# --- data sets --------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    data = load_data("digits")
    assert data.num_train + data.num_test == 1797
    assert (data.input_shape, data.num_classes) == ((1, 8, 8), 10)
    assert data.true_labels is None
    assert data.train_images.shape == (data.num_train, 8, 8)
    assert data.train_images.dtype == np.uint8
    assert data.train_images.max() == 255
    assert data.train_inputs.double().mean().item() == pytest.approx(0.0, abs=1e-6)
    assert data.train_inputs.double().std().item() == pytest.approx(1.0, abs=1e-6)
    for labels in (data.train_labels, data.test_labels):  # stratified: every class has its tenth, give or take
        assert torch.bincount(labels, minlength=10).double().div(len(labels)).sub(0.1).abs().max() < 0.005


def test_unit_scaling_is_the_image() -> None:
    data = load_data("digits", scaling="unit")
    shown = np.round(data.train_inputs[:, 0].numpy() * 255).astype(np.uint8)
    assert np.array_equal(shown, data.train_images)


def test_the_split_follows_the_seed() -> None:
    first, again, other = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert not torch.equal(first.train_labels, other.train_labels)


def test_subsets_are_stratified() -> None:
    data = load_data("digits", train_samples=200, test_samples=100)
    assert (data.num_train, data.num_test) == (200, 100)
    assert torch.bincount(data.train_labels).tolist() == pytest.approx([20] * 10, abs=1)


def test_noise_keeps_the_truth() -> None:
    data = load_data("digits")
    corrupted = with_label_noise(data, rate=0.5, kind="symmetric", seed=3)
    assert corrupted.true_labels is not None
    assert torch.equal(corrupted.true_labels, data.train_labels)
    assert int((corrupted.train_labels != corrupted.true_labels).sum()) == round(0.5 * data.num_train)
    assert with_label_noise(data, rate=0.5, kind="none").true_labels is None


def write_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (9, 5)) -> None:
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")


def test_folder_of_images_without_a_split(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 12, "dog": 8})
    data = load_data("folder", root=tmp_path, image_size=6, test_share=0.25)
    assert data.class_names == ("cat", "dog")
    assert data.train_images.shape == (15, 6, 6, 3)
    assert data.input_shape == (3, 6, 6)
    assert torch.bincount(data.test_labels).tolist() == [3, 2]


def test_folder_with_its_own_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 3, "dog": 4})
    write_images(tmp_path / "test", {"cat": 2, "dog": 1})
    data = load_data("folder", root=tmp_path, image_size=4)
    assert (data.num_train, data.num_test) == (7, 3)


def test_cifar10_from_folders_of_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 3, "dog": 4}, size=(32, 32))
    write_images(tmp_path / "test", {"cat": 2, "dog": 1}, size=(32, 32))
    data = load_data("cifar10", root=tmp_path, scaling="unit")
    assert data.train_inputs.shape == (7, 3, 32, 32)
    stored = {np.asarray(Image.open(path)).tobytes() for path in (tmp_path / "train").rglob("*.png")}
    assert {image.tobytes() for image in data.train_images} == stored
    assert data.class_names == ("cat", "dog")


def test_folder_of_the_same_size_keeps_every_pixel(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4, "b": 4}, size=(5, 5))
    data = load_data("folder", root=tmp_path, image_size=5, scaling="unit")
    stored = {np.asarray(Image.open(path)).tobytes() for path in tmp_path.rglob("*.png")}
    assert {image.tobytes() for image in data.train_images} <= stored
    assert np.array_equal(
        (data.train_inputs * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), data.train_images
    )


def test_mnist_from_its_files() -> None:
    root = DATA_ROOT / "mnist4k"
    if not root.is_dir():
        pytest.skip(f"MNIST is not under {root}: set SGDKERN_DATA to the folder that holds mnist4k")
    data = load_data("mnist", root=root, train_samples=1000, test_samples=500)
    assert data.input_shape == (1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [100] * 10
    assert data.num_test == 500


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name must be one of digits, mnist"):
        load_data("imagenet")
    with pytest.raises(ValueError, match=r"--data-root"):
        load_data("mnist")
    with pytest.raises(FileNotFoundError, match=r"--download"):
        load_data("mnist", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"sub-folder"):
        load_data("folder", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"was not found"):
        load_data("folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"scaling must be one of"):
        load_data("digits", scaling="log")  # type: ignore[arg-type]
    assert set(LOADERS) == {"digits", "mnist", "fashion-mnist", "cifar10", "folder"}


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "a" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        load_data("folder", root=tmp_path)


def test_classes_too_small_to_split_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3, "b": 1})
    with pytest.raises(ValueError, match=r"at least two samples"):
        load_data("folder", root=tmp_path)


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: a magic number with the number of axes, their sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashion_mnist_from_its_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST" / "raw"
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    data = load_data("fashion-mnist", root=tmp_path)
    assert (data.num_train, len(data.test_labels)) == (40, 20)
    assert data.class_names[9] == "Ankle boot"


def test_cifar10_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from torchvision.datasets import cifar

    rng, names = np.random.default_rng(0), [f"class {number}" for number in range(10)]
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # these are not the published files
    data = load_data("cifar10", root=tmp_path)
    assert (data.num_train, data.class_names) == (100, tuple(names))
    assert data.train_inputs[0].numel() == 3072


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("cifar10", "CIFAR10")]
)
@pytest.mark.parametrize("download", [False, True])
def test_a_download_is_asked_for_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, download: bool
) -> None:
    datasets, asked = pytest.importorskip("torchvision.datasets"), []

    class Published:
        data, targets, classes = np.zeros((20, 4, 4), np.uint8), [i % 2 for i in range(20)], ["a", "b"]

        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            asked.append((root, train, download))

    monkeypatch.setattr(datasets, kind, Published)
    load_data(name, root=tmp_path, download=download)
    assert asked == [(str(tmp_path), True, download), (str(tmp_path), False, download)]
