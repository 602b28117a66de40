"""Histories whose phases are known, for tests of what finds them."""

import numpy as np

from sgdkern.history import GroupRecord, History, Record

STEPS = np.unique(np.concatenate([[0], np.geomspace(1, 20_000, 110).round()])).astype(int)


def planted(
    *,
    rate=0.4,
    t12=200.0,
    t23=2_000.0,
    t34=9_000.0,
    num_samples=300,
    hard=0.0,
    generalises=True,
    last=20_000,
    margins=True,
    given=False,
    wandering=0.0,
    seed=0,
):
    """A history in which right labels are learned around T12 and wrong ones memorised from T23 to T34.

    Each sample's label is fitted from a step of its own; `hard` samples are right but learned late, with small margins.
    What a network answers instead of a label is drawn anew at each record with probability `wandering`.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 10, num_samples)
    wrong = np.arange(num_samples) < rate * num_samples
    labels = np.where(wrong, (true + 1 + rng.integers(0, 9, num_samples)) % 10, true)
    learned = t12 * np.exp(rng.uniform(-2.5, 0.05, num_samples))
    if not generalises:
        learned[:] = np.inf
    late = rng.random(num_samples) < hard
    learned[late] = t12 * np.exp(rng.uniform(0, 2.0, late.sum()))
    fitted_from = np.where(wrong, np.exp(rng.uniform(np.log(t23 * 0.9), np.log(t34), num_samples)), learned)
    if not generalises:
        fitted_from = np.exp(rng.uniform(np.log(t23), np.log(t34), num_samples))
    levels = {"I": 0.1, "II": 2.0, "III": 0.2, "IV": 4.0}
    history = History({"num_samples": num_samples, "batch_size": 25, "given_labels": labels})
    for step in STEPS[last >= STEPS]:
        fitted = step >= fitted_from
        answer = np.where(step >= learned, true, rng.integers(0, 10, num_samples))
        if not generalises:
            answer = rng.integers(0, 10, num_samples)
        answer = np.where(rng.random(num_samples) < wandering, rng.integers(0, 10, num_samples), answer)
        chance = rng.integers(1, 10, num_samples)
        predictions = np.where(fitted, labels, np.where(answer == labels, (labels + chance) % 10, answer))
        size = np.where(late, 0.05, 1.0) * rng.uniform(0.5, 1.5, num_samples)
        phase = "I" if step < t12 else "II" if step < t23 else "III" if step < t34 else "IV"
        memorised = float(fitted[wrong].mean()) if wrong.any() else 0.0
        generalising = float((step >= learned).mean())
        groups = {}
        if given:
            a0_c = 9.0 if phase == "I" else 1.0
            cosine = 0.4 if phase == "III" else -0.8
            rows = ((1.0, cosine, 0.5), (cosine, 1.0, 0.5), (0.5, 0.5, 1.0))
            groups["given"] = GroupRecord(("c", "w"), (num_samples // 2, num_samples // 2), (1, 1), (a0_c, 1.0), rows)
        history.append(
            Record(
                step=int(step),
                values={
                    "sigma_lambda2": levels[phase] * float(np.exp(0.1 * rng.normal())),
                    "A": {"I": 1.0, "II": 1.0, "III": 6.0, "IV": 0.01}[phase] if rate else 1.0 / (1.0 + step),
                },
                metrics={
                    "train_error": 1.0 - float(fitted.mean()),
                    "test_error": 0.9 - 0.8 * generalising + 0.5 * memorised * rate,
                },
                groups=groups,
                losses=np.where(fitted, 0.1, 5.0).astype(np.float32) if margins else None,
                margins=np.where(fitted, size, -size).astype(np.float32) if margins else None,
                predictions=predictions if margins else None,
            )
        )
    return history
