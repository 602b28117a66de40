"""find_label_issues on histories made by hand: ranking, thresholds, columns, and words for bad input."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import sgdkern as sk
from sgdkern import classification
from sgdkern.cleaning import find_label_issues
from sgdkern.cleaning.mixture import (
    Mixture,
    agreement_among_sure,
    fit_mixture,
    probability_wrong,
    rate_among_sure,
    rate_of,
)
from sgdkern.cleaning.recorded import from_history
from sgdkern.cleaning.scores import cross_entropy, memorisation_onset, quality, time_average
from sgdkern.history import History, Record


class Known:
    """Phases of the run made by `memorising_run`."""

    t23 = 60.0
    cleaning_step = 25.0


def memorising_run(num_samples=600, num_classes=5, noise_rate=0.3, seed=0):
    """Logits [T, N, C] of a run that learns the truth by step 10 and memorises the labels after step 60."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, num_samples)
    wrong = np.arange(num_samples) < round(noise_rate * num_samples)
    given = np.where(wrong, (truth + rng.integers(1, num_classes, num_samples)) % num_classes, truth)
    steps = np.unique(np.geomspace(1, 400, 24).round()).astype(int)
    logits = rng.normal(0, 0.6, (len(steps), num_samples, num_classes))
    rows = np.arange(num_samples)
    for t, step in enumerate(steps):
        logits[t, rows, truth] += 3 * min(1, step / 10)
        logits[t, rows, given] += 6 * max(0, np.log(step / 60)) + 0.5
    return steps, logits, given, truth, wrong


def margins(logits, labels):
    """The given label's logit minus the largest other one, by masks."""
    own = np.arange(logits.shape[-1]) == labels[:, None]
    return np.where(own, logits, 0).sum(axis=-1) - np.where(own, -np.inf, logits).max(axis=-1)


def auroc(wrong, quality_score):
    """Share of (wrong, right) pairs that the score orders correctly, ties count half."""
    bad, good = quality_score[wrong][:, None], quality_score[~wrong][None]
    return ((bad < good).mean() + (bad == good).mean() / 2).item()


@pytest.mark.parametrize("method", ["aum", "mean_loss", "loss", "paper", "auto"])
def test_every_method_finds_the_wrong_labels(method):
    steps, logits, given, truth, wrong = memorising_run()
    issues = find_label_issues(logits, labels=given, kind="logits", steps=steps, phases=Known(), method=method)
    assert auroc(wrong, issues["label_quality"]) > 0.97
    found = issues["is_label_issue"]
    assert (found & wrong).sum() / found.sum() > 0.9
    assert (found & wrong).sum() / wrong.sum() > 0.9
    assert np.mean(issues["predicted_label"] == truth) > 0.95
    assert abs(issues.noise_rate.estimate - 0.3) < 0.05
    assert issues.noise_rate.low < issues.noise_rate.estimate < issues.noise_rate.high


def test_contract_of_the_columns():
    steps, logits, given, _, _ = memorising_run(num_samples=200)
    issues = find_label_issues(logits, labels=given, kind="logits", steps=steps)
    assert dict(issues).keys() == {"is_label_issue", "label_quality", "given_label", "predicted_label", "p_wrong"}
    score = issues["label_quality"]
    assert ((score >= 0) & (score <= 1)).all()
    np.testing.assert_array_equal(issues["is_label_issue"], score < 0.5)
    assert (np.diff(issues["p_wrong"][issues.ranking]) <= 1e-12).all()
    assert len(issues) == issues.num_samples == 200
    assert issues.expected_precision(10) >= issues.expected_precision(150)
    with pytest.raises(KeyError, match="label_quality"):
        issues["labelquality"]


def test_a_permutation_of_the_samples_permutes_the_table():
    steps, logits, given, _, _ = memorising_run(num_samples=150)
    order = np.random.default_rng(1).permutation(150)
    one = find_label_issues(logits, labels=given, kind="logits", steps=steps)
    two = find_label_issues(logits[:, order], labels=given[order], kind="logits", steps=steps)
    np.testing.assert_allclose(two["label_quality"], one["label_quality"][order], rtol=1e-12)
    np.testing.assert_array_equal(two["predicted_label"], one["predicted_label"][order])


def test_clean_labels_give_few_issues_whatever_is_recorded():
    steps, logits, given, _, _ = memorising_run(noise_rate=0.0)
    for method in ("aum", "mean_loss"):
        with pytest.warns(UserWarning, match="one group") if method == "mean_loss" else nullcontext():
            issues = find_label_issues(logits, labels=given, kind="logits", steps=steps, phases=Known(), method=method)
        assert issues["is_label_issue"].mean() <= 0.02


@pytest.mark.parametrize("method", ["aum", "mean_loss", "loss"])
@pytest.mark.parametrize("by_label", [0.0, 0.3], ids=["alike", "by label"])
def test_where_nothing_was_learned_nothing_is_flagged_and_the_reason_said(method, by_label):
    rng = np.random.default_rng(0)
    given = rng.integers(0, 5, 500)
    logits = rng.normal(0, 0.1, (4, 500, 5)) + by_label * np.arange(5)  # the inputs' part is noise
    with pytest.warns(UserWarning, match="nothing learned" if method == "aum" else "one group"):
        issues = find_label_issues(logits, labels=given, kind="logits", phases=Known(), method=method)
    assert not issues["is_label_issue"].any()
    assert (issues["p_wrong"] == 0).all()
    assert (issues.noise_rate.low, issues.noise_rate.high) == (0, 1)
    assert len(np.unique(issues["label_quality"])) == 500  # the ranking stays
    if method == "aum":  # a History is asked the same
        history = History({"given_labels": given})
        margin = margins(logits, given).astype(np.float32)
        for step, row in enumerate(margin):
            history.append(Record(step=step, margins=row))
        with pytest.warns(UserWarning, match="nothing learned"):
            issues = find_label_issues(history)
        assert not issues["is_label_issue"].any()
        assert (issues.noise_rate.low, issues.noise_rate.high) == (0, 1)


def test_strings_work_like_integers():
    steps, logits, given, _, _ = memorising_run(num_samples=100)
    names = np.array(["ant", "bee", "cat", "dog", "elk"])
    numbers = find_label_issues(logits, labels=given, kind="logits", steps=steps)
    strings = find_label_issues(logits, labels=names[given], kind="logits", steps=steps)
    np.testing.assert_array_equal(strings["label_quality"], numbers["label_quality"])
    np.testing.assert_array_equal(strings["predicted_label"], names[numbers["predicted_label"]])


def test_a_history_gives_what_its_arrays_give():
    steps, logits, given, _, _ = memorising_run(num_samples=120)
    history = History({"given_labels": given})
    margin = margins(logits, given).astype(np.float32)
    loss = cross_entropy(logits, given).astype(np.float32)
    for t, step in enumerate(steps):
        history.append(Record(step=int(step), losses=loss[t], margins=margin[t], predictions=logits[t].argmax(-1)))
    issues = find_label_issues(history, phases=Known())
    arrays = find_label_issues(
        margin, kind="margins", labels=given, steps=steps, predictions=logits.argmax(-1), phases=Known()
    )
    for column in issues:
        np.testing.assert_array_equal(issues[column], arrays[column])
    assert issues.method == "aum"
    assert issues.cleaning_step == 60.0


@pytest.fixture(scope="module")
def small_run():
    """A linear model that tells two clouds apart, their samples, and labels of which every tenth is wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 2
    inputs = torch.randn(60, 3, generator=generator) + 8.0 * truth[:, None]
    given = torch.where(torch.arange(60) % 10 == 0, 1 - truth, truth)
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.1] * 3, [0.1] * 3]))
        model.bias.zero_()
    return model, inputs - inputs.mean(0), given, (given != truth).numpy()


def test_records_of_a_probe(small_run):
    model, inputs, given, wrong = small_run
    probe = sk.Probe(model, torch.nn.functional.cross_entropy, inputs, given, every=10, blind=False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
    for step in range(41):
        probe(step)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), given).backward()
        optimiser.step()
    issues = find_label_issues(probe.history, labels=given.numpy())
    np.testing.assert_array_equal(issues["is_label_issue"], wrong)
    assert issues.method == "aum"


def test_records_of_watch_are_taken_where_every_step_sees_all_samples_and_refused_where_not(small_run):
    model, inputs, given, wrong = small_run
    loss_fn = torch.nn.CrossEntropyLoss()
    with sk.watch(model, loss_fn, every=1) as watched:
        for _ in range(3):
            loss_fn(model(inputs), given).backward()
    issues = find_label_issues(watched.history, labels=given.numpy())
    np.testing.assert_array_equal(issues["is_label_issue"], wrong)
    with sk.watch(model, loss_fn, every=1) as watched:
        for rows in (slice(0, 20), slice(20, 60)):
            loss_fn(model(inputs[rows]), given[rows]).backward()
    with pytest.raises(ValueError, match=r"the same 60 samples as the labels, got records of \[20, 40\]. .* samples="):
        find_label_issues(watched.history, labels=given.numpy())


def test_minibatch_records_of_watch_with_their_samples(small_run):
    model, inputs, given, wrong = small_run
    loss_fn = torch.nn.CrossEntropyLoss()
    generator, batches = torch.Generator().manual_seed(1), []
    with sk.watch(model, loss_fn, every=1) as watched:
        for _ in range(2):
            for batch in torch.randperm(60, generator=generator).split(25):
                batches.append(batch)
                loss_fn(model(inputs[batch]), given[batch]).backward()
    issues = find_label_issues(watched.history, labels=given.numpy(), samples=batches)
    np.testing.assert_array_equal(issues["is_label_issue"], wrong)
    with sk.watch(model, loss_fn, every=1) as whole:  # the model did not change: the same numbers, sample by sample
        loss_fn(model(inputs), given).backward()
    expected = find_label_issues(whole.history, labels=given.numpy())
    np.testing.assert_allclose(issues["label_quality"], expected["label_quality"], rtol=1e-4)
    for samples, words in (
        (batches[:-1], "each of the 6 records .*, got 5"),
        ([batches[1], *batches[1:]], None),
        ([batches[2], *batches[1:]], r"samples\[0\] must be the 25 places"),
        ([batches[0] + 60, *batches[1:]], r"samples\[0\] must be places from 0 to 59"),
    ):
        with nullcontext() if words is None else pytest.raises(ValueError, match=words):
            find_label_issues(watched.history, labels=given.numpy(), samples=samples)
    first_pass = History(watched.history.header)
    for record in watched.history.records[:2]:
        first_pass.append(record)
    with pytest.raises(ValueError, match=r"is in none of them\. Record every step"):
        find_label_issues(first_pass, labels=given.numpy(), samples=batches[:2])
    with pytest.raises(ValueError, match="samples belong to a History"):
        find_label_issues(np.ones((1, 60)), labels=given.numpy(), samples=batches)


def test_minibatch_records_keep_the_latest_value_of_each_sample_a_pass():
    rng = np.random.default_rng(0)
    history, batches, latest, rows = History({}), [], np.zeros(12, np.float32), []
    for step in range(9):
        batches.append(rng.permutation(12)[:4] if step >= 3 else np.arange(4) + 4 * step)
        values = rng.normal(size=4).astype(np.float32)
        history.append(Record(step=step, margins=values))
        latest[batches[-1]] = values
        if step % 3 == 2:
            rows.append(latest.copy())
    data = from_history(history, 12, batches)
    np.testing.assert_array_equal(data.steps, [2, 5, 8])
    np.testing.assert_array_equal(data.margins, np.stack(rows))
    assert data.losses is data.predictions is None


def test_places_out_of_range_are_named_and_an_empty_minibatch_is_none():
    history = History({})
    for step, size in enumerate([4, 0, 4]):
        history.append(Record(step=step, margins=np.ones(size, np.float32)))
    first, last = np.arange(4), np.arange(4, 8)
    with pytest.raises(ValueError, match=r"samples\[2\] must be places from 0 to 7, got 5 to 8"):
        from_history(history, 8, [first, [], last + 1])
    with pytest.raises(ValueError, match=r"samples\[0\] must be places from 0 to 7, got -1 to 2"):
        from_history(history, 8, [first - 1, [], last])
    np.testing.assert_array_equal(from_history(history, 8, [first, [], last]).margins, np.ones((1, 8)))


def test_csv_is_ranked_and_suggests(tmp_path):
    steps, logits, given, truth, _ = memorising_run(num_samples=80)
    issues = find_label_issues(logits, labels=given, kind="logits", steps=steps, phases=Known())
    with issues.to_csv(tmp_path / "issues.csv", true_label=truth).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == issues.ranking.tolist()
    assert float(rows[0]["label_quality"]) <= float(rows[-1]["label_quality"])
    first = int(rows[0]["index"])
    assert rows[0]["suggested_label"] == str(issues["predicted_label"][first])
    assert rows[-1]["suggested_label"] == rows[-1]["given_label"]
    assert {"is_label_issue", "p_wrong", "true_label"} <= rows[0].keys()


def test_pandas_has_one_row_a_sample():
    pytest.importorskip("pandas")
    steps, logits, given, _, _ = memorising_run(num_samples=30)
    frame = find_label_issues(logits, labels=given, kind="logits", steps=steps).to_pandas()
    assert list(frame.columns)[:4] == ["is_label_issue", "label_quality", "given_label", "predicted_label"]
    assert len(frame) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": None}, "labels must be given"),
        ({"labels": np.zeros(7, int)}, "6 samples for 7 labels"),
        ({"recorded": -np.ones((2, 6))}, "kind='margins'"),
        ({"recorded": np.full((2, 6), np.nan)}, "Did training diverge"),
        ({"steps": np.array([2, 1])}, "steps must increase"),
        ({"steps": np.array([1, 2, 3])}, "2 rows of losses for 3 steps"),
        ({"method": "loss"}, "phases with a cleaning step"),
        ({"method": "aum"}, "needs margins or logits"),
        ({"method": "best"}, "unknown method 'best'"),
        ({"kind": "logits"}, "2 classes|columns"),
        ({"kind": "gradients"}, "kind must be"),
        ({"recorded": np.ones((2, 6))}, "scores must differ"),
    ],
)
def test_bad_input_is_told_in_words(arguments, words):
    good = {"recorded": np.arange(12.0).reshape(2, 6), "labels": np.array([0, 1, 0, 1, 0, 1])}
    call = good | arguments
    with pytest.raises(ValueError, match=words):
        find_label_issues(call.pop("recorded"), **call)


def test_time_average_is_the_trapezoidal_rule():
    steps = np.array([1, 2, 5, 11])
    values = np.array([[1.0], [3.0], [2.0], [7.0]])
    area = (1 + 3) / 2 * 1 + (3 + 2) / 2 * 3 + (2 + 7) / 2 * 6
    assert time_average(values, steps)[0] == pytest.approx(area / 10)
    assert time_average(values, steps, until=5)[0] == pytest.approx(((1 + 3) / 2 + (3 + 2) / 2 * 3) / 4)
    assert time_average(values, steps, until=0)[0] == 1.0


def test_margins_and_losses_by_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 5)) * 50, rng.integers(0, 5, 4)
    for t in range(3):
        for n in range(4):
            z, y = logits[t, n], labels[n]
            others = np.delete(z, y)
            found = classification.margins(torch.from_numpy(logits), torch.from_numpy(labels))[t, n]
            assert found.item() == pytest.approx(z[y] - others.max())
            assert cross_entropy(logits, labels)[t, n] == pytest.approx(np.logaddexp.reduce(z) - z[y], abs=1e-12)


def test_mixture_recovers_two_gaussians():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0, 1, 3000), rng.normal(8, 2, 1000)])
    mixture = fit_mixture(values)
    np.testing.assert_allclose(mixture.means, (0, 8), atol=0.2)
    np.testing.assert_allclose(mixture.weights, (0.75, 0.25), atol=0.02)
    # equal weighted densities at x: the defining equation, checked at the point returned
    x = mixture.equal_density
    parts = zip(mixture.means, mixture.variances, mixture.weights)
    densities = [weight / v**0.5 * np.exp(-((x - mean) ** 2) / (2 * v)) for mean, v, weight in parts]
    assert densities[0] == pytest.approx(densities[1], rel=0.02)
    assert mixture.midpoint == pytest.approx(sum(mixture.means) / 2)


def test_equal_density_falls_back_to_the_midpoint():
    assert Mixture((0.0, 1.0), (1.0, 1.0), (0.999, 0.001)).equal_density == 0.5


def test_probability_wrong_is_certain_only_without_a_second_group():
    assert (probability_wrong(np.array([1.0, 2.0, 3.0]), 0.0) == 0).all()
    assert rate_of(np.zeros(100)).high == pytest.approx(0.037, abs=1e-3)  # Wilson's upper bound at 0 of 100


def test_quality_is_strictly_increasing_and_half_at_the_threshold():
    scores = np.linspace(-100, 100, 1001)
    values = quality(scores, 20.0)
    assert (np.diff(values) > 0).all()
    assert quality(np.array([20.0, 1.0]), 20.0)[0] == 0.5


def test_onset_of_memorisation_is_seen_in_the_margins():
    steps, logits, given, _, wrong = memorising_run()
    onset = memorisation_onset(margins(logits, given), steps)
    assert 20 <= onset <= 110  # made to begin at 60, and to overtake what was learned by 60 e^(3/6) = 99
    issues = find_label_issues(logits, labels=given, kind="logits", steps=steps)
    assert issues.cleaning_step == onset
    assert auroc(wrong, issues["label_quality"]) > 0.97


def test_clean_labels_and_short_runs_have_no_onset():
    steps, logits, given, _, _ = memorising_run(noise_rate=0.0)
    assert memorisation_onset(margins(logits, given), steps) is None
    steps, logits, given, _, _ = memorising_run()
    early = steps <= 40
    assert memorisation_onset(margins(logits[early], given), steps[early]) is None
    assert memorisation_onset(margins(logits[:1], given), steps[:1]) is None


def networks(accuracy_of_surest, accuracy_of_others, noise_rate, num_samples=4000, seed=0):
    """Held-out logits of networks of a certain accuracy, labels with noise: the surest half is ranked by its gap."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 10, num_samples)
    sureness = rng.permutation(num_samples) / num_samples  # 1 is surest
    accuracy = accuracy_of_others + (accuracy_of_surest - accuracy_of_others) * sureness**3
    right = rng.random(num_samples) < accuracy
    logits = np.zeros((num_samples, 10))
    guess = np.where(right, truth, (truth + rng.integers(1, 10, num_samples)) % 10)
    logits[np.arange(num_samples), guess] = 1 + sureness
    wrong = rng.random(num_samples) < noise_rate
    return logits, np.where(wrong, (truth + rng.integers(1, 10, num_samples)) % 10, truth)


def test_the_rate_among_the_surest_of_good_networks():
    rate = rate_among_sure(*networks(1.0, 1.0, 0.3))
    assert rate.low < 0.3 < rate.high
    assert not rate.is_upper_bound


def test_networks_that_do_not_agree_with_one_another_give_a_bound():
    logits, labels = networks(0.6, 0.6, 0.0)
    others, _ = networks(0.6, 0.6, 0.0, seed=1)
    assert agreement_among_sure(logits, logits) == 1.0
    assert agreement_among_sure(logits, others) < 0.6
    assert not rate_among_sure(logits, labels).is_upper_bound
    rate = rate_among_sure(logits, labels, agreement=agreement_among_sure(logits, others))
    assert rate.is_upper_bound
    assert rate.low == 0.0 < 0.4 < rate.high


def test_weak_networks_give_a_bound_and_say_so():
    logits, labels = networks(0.9, 0.3, 0.3)
    rate = rate_among_sure(logits, labels, agreement=0.9)
    assert rate.is_upper_bound
    assert rate.low == 0.0
    assert 0.3 < rate < (logits.argmax(axis=1) != labels).mean() - 0.1


def test_the_least_of_five_shares_is_taken_by_an_interval_for_all_of_them():
    # 60 of the surest 200 are contradicted, 27 of the surest 100: too few asked to prefer the smaller share
    logits = np.stack([np.arange(400, 0, -1.0), np.zeros(400)], axis=1)
    labels = np.zeros(400, int)
    labels[:27] = labels[100:133] = 1
    rate = rate_among_sure(logits, labels, agreement=0.5)
    assert rate.estimate == pytest.approx(0.3)
    assert rate.is_upper_bound
    assert rate.low == 0
