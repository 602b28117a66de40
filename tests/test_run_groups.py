"""The main job's groups: its classes, and those that a file names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from small_runs import SMALL, quick_report  # noqa: F401

from sgdkern import run as run_module
from sgdkern.history import History
from sgdkern.observed_training import named_groups
from sgdkern.run import run, run_data


def test_the_classes_are_followed_with_what_chance_gives(tmp_path: Path) -> None:
    run(replace(SMALL, epochs=2, groups="classes"), tmp_path / "run")
    record = History.load(tmp_path / "run" / "history.jsonl").records[0]
    assert record.groups["classes"].names == tuple("0123456789")
    assert sum(record.groups["classes"].counts) == 120
    assert set(record.nulls) == {"given", "classes"}


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_groups_from_a_file_are_those_of_the_samples_that_were_kept(tmp_path: Path, suffix: str) -> None:
    sites = np.array([f"site {number % 3}" for number in range(1797)])  # the images of digits, before any split
    path = tmp_path / f"sites{suffix}"
    if suffix == ".npy":
        np.save(path, sites)
    else:
        path.write_text("\n".join(sites) + "\n")
    config = replace(SMALL, epochs=2, groups=str(path))
    run(config, tmp_path / "run")
    group = History.load(tmp_path / "run" / "history.jsonl").records[0].groups["sites"]
    data = run_module.run_data(config)
    images = load_digits().images[data.train_indices].astype(np.uint8)
    np.testing.assert_array_equal(images, np.round(data.train_images / 255 * 16))
    assert dict(zip(group.names, group.counts)) == {
        name: int((sites[data.train_indices] == name).sum()) for name in ("site 0", "site 1", "site 2")
    }


@pytest.mark.parametrize(
    ("lines", "words"), [(120, r"each of the 1797 images.*got \[120\]"), (0, "none, classes or a file")]
)
def test_groups_that_are_not_those_of_the_data_are_refused_before_anything_is_written(
    tmp_path: Path, lines: int, words: str
) -> None:
    path = tmp_path / "sites.txt"
    if lines:
        path.write_text("a\n" * lines)
    with pytest.raises(ValueError, match=words):
        run(replace(SMALL, groups=str(path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "content"), [("sites.npy", b"not an array"), ("sites.txt", b"\xff\xfe\x00")])
def test_groups_that_cannot_be_read_are_said(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"run: groups must be text in UTF-8 or a \.npy array"):
        run(replace(SMALL, groups=str(tmp_path / name)), tmp_path / "run")


def test_a_name_for_every_image_is_no_group(tmp_path: Path) -> None:
    (tmp_path / "files.txt").write_text("".join(f"{index}.png\n" for index in range(1797)))
    with pytest.raises(ValueError, match="run: groups must be shared by samples, got"):
        run(replace(SMALL, groups=str(tmp_path / "files.txt")), tmp_path / "run")


def test_a_byte_order_mark_makes_no_group(tmp_path: Path) -> None:
    path = tmp_path / "sites.txt"
    path.write_text("a\n" * 1797, encoding="utf-8-sig")
    assert list(named_groups(replace(SMALL, groups=str(path)), run_data(SMALL))["sites"]) == ["a"]
