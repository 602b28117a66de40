"""Partitions that a probe follows: any number of groups, each with what chance gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from probing import NUM_SAMPLES, a_probe, a_problem, slow_gradients
from torch.nn import functional

from sgdkern.history import History
from sgdkern.probe import Probe
from sgdkern.record import record_line


def test_partitions_of_any_number_of_groups_are_followed_each_with_its_null() -> None:
    model, inputs, targets = a_problem()
    site = torch.arange(NUM_SAMPLES) % 4
    probe = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=2, null_splits=40,
        partitions={"classes": targets, "sites": {f"site {name}": site == name for name in range(4)}},
    )  # fmt: skip
    first, second, third = (probe.measure(step) for step in range(3))
    rows = slow_gradients(model, inputs, targets)
    means = torch.stack([*(rows[site == one].mean(0) for one in range(4)), rows.mean(0)])
    lengths = means.norm(dim=1)
    expected = means @ means.T / lengths / lengths[:, None]
    assert first.groups["sites"].names == ("site 0", "site 1", "site 2", "site 3")
    # Each entry of G carries float32's rounding of some sums of ten terms: 10 ε, and a cosine twice that.
    assert np.allclose(first.groups["sites"].cosines, expected, atol=20 * torch.finfo(torch.float32).eps, rtol=0)
    assert first.nulls.keys() == third.nulls.keys() == {"classes", "sites"}
    assert second.nulls == {}
    null = first.nulls["sites"]
    lower, upper = np.array(null.lower), np.array(null.upper)
    assert lower.shape == upper.shape == (5, 5)
    assert (lower <= upper).all()
    assert null.num_splits == 40
    again = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=2, null_splits=40,
        partitions={"sites": site},
    ).measure(0)  # fmt: skip
    assert again.nulls["sites"] == null  # of the step and the sizes only


def test_the_null_holds_what_random_splits_do() -> None:
    """Of 200 further random splits at most so many leave the bounds as chance allows, at five standard deviations."""
    model, inputs, targets = a_problem()
    generator = torch.Generator().manual_seed(1)
    splits = {f"split {one}": torch.randperm(NUM_SAMPLES, generator=generator) % 2 for one in range(200)}
    probe = Probe(
        model, functional.cross_entropy, inputs, targets, batch_size=5, blind=False, null_every=1, null_splits=400,
        partitions=splits,
    )  # fmt: skip
    record = probe.measure(0)
    null = record.nulls["split 0"]
    outside = sum(not null.lower[0][1] <= record.groups[name].cosines[0][1] <= null.upper[0][1] for name in splits)
    # Outside with 5 %; the bounds are quantiles of 400 draws, so that share itself is only known to √(.05 · .95 / 400).
    spread = np.sqrt(200 * 0.05 * 0.95 + 200**2 * 0.05 * 0.95 / 400)
    assert abs(outside - 200 * 0.05) <= 5 * spread


def test_nulls_are_kept_in_the_history(tmp_path: Path) -> None:
    with a_probe(partitions={"classes": a_problem()[2]}, null_every=1, path=tmp_path / "history.jsonl") as probe:
        record = probe.measure(0)
    assert History.load(tmp_path / "history.jsonl").records[0].nulls == record.nulls
    without = a_probe(blind=False).measure(0)
    assert without.nulls == {}
    assert b"nulls" not in record_line(without)


def test_partitions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be called blind"):
        a_probe(partitions={"blind": torch.arange(NUM_SAMPLES) % 2})
    with pytest.raises(ValueError, match="groups must hold one integer"):
        a_probe(partitions={"classes": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="null_every and null_splits must be at least 1"):
        a_probe(null_every=0)
