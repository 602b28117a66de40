"""LabelCleaner: scikit-learn's own checks, what it finds, any model and input, and words for bad input."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from sgdkern.cleaning import LabelCleaner, noise_matrix, noise_rates_by


@pytest.mark.filterwarnings("ignore:LabelCleaner. .* too few:UserWarning", "ignore:LabelCleaner. class:UserWarning")
@pytest.mark.filterwarnings("ignore:LabelCleaner. the networks are often wrong:UserWarning")  # on its random labels
@parametrize_with_checks([LabelCleaner(mode="fast", max_epochs=6)])  # every check is expected to pass
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def blobs(num_samples=300, num_classes=3, noise_rate=0.2, seed=0):
    """Clusters with a share of wrong labels: inputs, given labels, true labels."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, num_samples)
    inputs = np.eye(num_classes)[truth] * 5 + rng.normal(size=(num_samples, num_classes))
    wrong = rng.permutation(num_samples) < round(noise_rate * num_samples)
    given = np.where(wrong, (truth + rng.integers(1, num_classes, num_samples)) % num_classes, truth)
    return inputs, given, truth


def auroc(wrong, label_quality):
    """Share of (wrong, right) pairs in the right order, ties count half."""
    bad, good = label_quality[wrong][:, None], label_quality[~wrong][None]
    return ((bad < good).mean() + (bad == good).mean() / 2).item()


@pytest.fixture(scope="module")
def digits():
    """Scikit-learn's digits with 40 % wrong labels, cleaned."""
    inputs, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(5)
    given = truth.copy()
    chosen = rng.permutation(len(truth))[: round(0.4 * len(truth))]
    given[chosen] = (truth[chosen] + rng.integers(1, 10, len(chosen))) % 10
    cleaner = LabelCleaner(num_members=5, num_rounds=2).fit(inputs[:1200], given[:1200])
    return cleaner, inputs, given, truth


def test_digits_at_forty_percent(digits):
    cleaner, inputs, given, truth = digits
    wrong, found = (given != truth)[:1200], cleaner.is_label_issue_
    assert auroc(wrong, cleaner.label_quality_) > 0.985
    assert (found & wrong).sum() / found.sum() > 0.9
    assert (found & wrong).sum() / wrong.sum() > 0.9
    assert abs(cleaner.noise_rate_ - wrong.mean()) < 0.05
    assert (cleaner.predicted_label_ == truth[:1200]).mean() > 0.9
    assert cleaner.score(inputs[1200:], truth[1200:]) > 0.85
    np.testing.assert_array_equal(found, cleaner.label_quality_ < 0.5)


def test_phases_and_time_are_in_order(digits):
    cleaner = digits[0]
    first, second = cleaner.phases_
    assert (first.name, second.name) == ("I", "II")
    assert 0 == first.start < first.end == second.start <= second.end
    assert second.end == cleaner.cleaning_time_ == cleaner.issues_.cleaning_step


def test_noise_matrix_counts_every_sample(digits):
    cleaner, _, given, _ = digits
    matrix = cleaner.noise_matrix_
    assert matrix.counts.sum() == 1200
    np.testing.assert_array_equal(matrix.counts.sum(axis=0), np.bincount(given[:1200]))
    np.testing.assert_allclose(matrix.probabilities.sum(axis=1), 1)
    assert np.all(np.diag(matrix.probabilities) > 0.4)


def test_pair_noise_shows_as_confused_pairs_and_a_bad_source():
    inputs, _, truth = blobs(num_samples=600, noise_rate=0.0)
    sources = np.array(["careful", "careless"])[(np.arange(600) % 3 == 0).astype(int)]
    given = np.where((sources == "careless") & (truth == 1) & (np.arange(600) % 2 == 0), 2, truth)
    cleaner = LabelCleaner(mode="fast").fit(inputs, given, sources=sources)
    assert cleaner.noise_matrix_.confused_pairs()[0][:2] == (1, 2)
    rates = cleaner.source_noise_rates_
    assert rates["careless"].low > rates["careful"].high
    assert noise_rates_by(cleaner.issues_, sources).keys() == rates.keys()
    assert noise_matrix(cleaner.issues_).counts.sum() == 600


def test_clean_labels_are_left_alone():
    inputs, given, _ = blobs(noise_rate=0.0)
    cleaner = LabelCleaner(mode="fast").fit(inputs, given)
    assert cleaner.is_label_issue_.mean() <= 0.02
    assert cleaner.noise_rate_.low <= 0.02


def test_same_seed_same_bits_and_another_seed_another_score():
    inputs, given, _ = blobs()
    one, two = (LabelCleaner(mode="fast", random_state=3).fit(inputs, given) for _ in range(2))
    np.testing.assert_array_equal(one.label_quality_, two.label_quality_)
    other = LabelCleaner(mode="fast", random_state=4).fit(inputs, given)
    assert not np.array_equal(one.label_quality_, other.label_quality_)


def test_global_random_state_is_left_alone():
    inputs, given, _ = blobs(num_samples=60)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    LabelCleaner(lambda: nn.Linear(3, 3), mode="fast", max_epochs=2).fit(inputs, given)
    assert torch.equal(torch.get_rng_state(), before)


def test_strings_tensors_and_datasets_are_the_same_data():
    inputs, given, _ = blobs()
    names = np.array(["ant", "bee", "cat"])
    tensor = torch.from_numpy(inputs).float()
    cleaner = LabelCleaner(mode="fast", max_epochs=4)
    base = clone(cleaner).fit(tensor.numpy(), given).label_quality_
    strings = clone(cleaner).fit(tensor.numpy(), names[given])
    np.testing.assert_array_equal(strings.label_quality_, base)
    assert set(strings.predicted_label_) <= set(names)
    assert set(strings.predict(tensor[:5])) <= set(names)
    np.testing.assert_array_equal(clone(cleaner).fit(tensor, torch.from_numpy(given)).label_quality_, base)
    dataset = torch.utils.data.TensorDataset(tensor, torch.from_numpy(given))
    np.testing.assert_array_equal(clone(cleaner).fit(dataset).label_quality_, base)


class SmallConvolution(nn.Module):
    """A convolutional network for images of 1 channel."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 9, 10)

    def forward(self, images):
        return self.head(self.layers(images))


@pytest.mark.parametrize("model", [SmallConvolution, SmallConvolution()], ids=["factory", "module"])
def test_any_model_on_images(model):
    inputs, truth = load_digits(return_X_y=True)
    images, truth = (inputs[:600] / 16).reshape(-1, 1, 8, 8).astype(np.float32), truth[:600]
    rng = np.random.default_rng(0)
    given = np.where(rng.random(600) < 0.3, (truth + rng.integers(1, 10, 600)) % 10, truth)
    cleaner = LabelCleaner(model, num_members=2, max_epochs=8, batch_size=20).fit(images, given)
    assert auroc(given != truth, cleaner.label_quality_) > 0.9
    assert cleaner.predict_proba(images[:7]).shape == (7, 10)


def test_a_module_given_is_not_changed():
    model = nn.Linear(3, 3)
    before = [parameter.clone() for parameter in model.parameters()]
    inputs, given, _ = blobs(num_samples=60)
    LabelCleaner(model, mode="fast", max_epochs=2).fit(inputs, given)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_pipeline_and_pickle():
    inputs, given, _ = blobs()
    pipeline = make_pipeline(StandardScaler(), LabelCleaner(mode="fast", max_epochs=4)).fit(inputs, given)
    copy = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(copy.predict(inputs), pipeline.predict(inputs))
    assert copy[-1].noise_rate_.high == pipeline[-1].noise_rate_.high


def test_features_of_different_units_do_not_drown_each_other():
    inputs, given, truth = blobs(num_samples=400)
    mixed = inputs * np.array([1e3, 1.0, 1e-3])
    cleaner = LabelCleaner(mode="fast").fit(mixed, given)
    assert auroc(given != truth, cleaner.label_quality_) > 0.97


def test_progress_is_told():
    inputs, given, _ = blobs(num_samples=60)
    calls = []
    LabelCleaner(mode="fast", num_rounds=2, max_epochs=2).fit(inputs, given, on_epoch=lambda *at: calls.append(at))
    assert calls == [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({}, {"y": np.zeros(60, int)}, "got one class, 0"),
        ({}, {"y": None}, "requires y to be passed"),
        ({}, {"y": np.linspace(0, 1, 60)}, "Unknown label type"),
        ({}, {"y": np.zeros(50, int)}, "got 60 and 50"),
        ({"classes": [0, 1]}, {}, "one of the 2 classes, got 2 at sample"),
        ({}, {"X": np.full((60, 3), np.nan)}, "NaN"),
        ({"num_folds": 40}, {}, "at least 80 samples"),
        ({"mode": "slow"}, {}, "mode must be 'default' or 'fast'"),
        ({"max_epochs": 0}, {}, "max_epochs must be at least 1"),
        ({"model": lambda: nn.Linear(3, 2)}, {}, "C at least 3 classes"),
        ({"device": "nowhere"}, {}, "'nowhere' is not"),
        ({}, {"sources": ["ann", "bob"]}, r"each of the 60 labels, got \[2\]"),
    ],
)
def test_bad_input_is_told_in_words(options, change, words):
    inputs, given, _ = blobs(num_samples=60)
    with pytest.raises(ValueError, match=words):
        LabelCleaner(**options).fit(**({"X": inputs, "y": given} | change))


def test_divergence_is_told():
    inputs, given, _ = blobs(num_samples=60)
    with pytest.raises(RuntimeError, match=r"diverged at lr=1e\+30"):
        LabelCleaner(lr=1e30, momentum=0.0).fit(inputs, given)


def test_a_lonely_label_is_left_as_it_is_with_a_warning():
    inputs, given, _ = blobs(num_samples=100)
    given[7] = 3
    with pytest.warns(UserWarning, match="class 3 with a single sample"):
        cleaner = LabelCleaner(mode="fast", max_epochs=3).fit(inputs, given)
    assert not cleaner.is_label_issue_[7]
    assert cleaner.label_quality_[7] == 0.5


def test_networks_too_weak_for_a_noise_rate_say_that_it_is_a_bound():
    rng = np.random.default_rng(0)
    inputs, truth = rng.normal(size=(600, 20)), rng.integers(0, 5, 600)
    inputs[:, 0] += truth  # a hint, no more
    with pytest.warns(UserWarning, match="cannot be told: .* is an upper bound.*Review the worst"):
        cleaner = LabelCleaner(mode="fast").fit(inputs, truth)
    rates = [cleaner.noise_rate_, *cleaner.class_noise_rates_.values()]
    assert all(rate.is_upper_bound and rate.low == 0.0 for rate in rates)
    assert cleaner.is_label_issue_.mean() <= float(cleaner.noise_rate_) + 0.01 < cleaner.noise_rate_.high


def test_further_rounds_are_left_out_where_nothing_is_contradicted():
    inputs, _, truth = blobs()
    assert len(LabelCleaner(max_epochs=8).fit(inputs * 3, truth).rounds_) == 1
    inputs, given, _ = blobs()
    assert len(LabelCleaner(max_epochs=8).fit(inputs, given).rounds_) == 3


def test_models_of_ones_own_are_several_for_few_epochs():
    inputs, given, _ = blobs()
    assert LabelCleaner(nn.Linear(3, 3)).fit(inputs, given).members_.num_members == 3
    fast = LabelCleaner(nn.Linear(3, 3), mode="fast").fit(inputs, given)
    assert (fast.members_.num_members, len(fast.rounds_[0].held_out_accuracy)) == (2, 5)


@pytest.mark.filterwarnings("ignore:LabelCleaner. the networks are often wrong:UserWarning")
def test_too_few_epochs_are_told():
    inputs, _, truth = blobs(num_samples=1000, num_classes=5)
    with pytest.warns(UserWarning, match=r"still learning after 3 epochs.*Raise max_epochs"):
        LabelCleaner(max_epochs=3, num_rounds=1, lr=0.001, momentum=0.0).fit(inputs, truth)


@pytest.mark.filterwarnings("ignore:LabelCleaner. the networks are often wrong:UserWarning")
def test_too_few_samples_are_told():
    inputs, given, _ = blobs(num_samples=25)
    with pytest.warns(UserWarning, match="25 samples for 3 classes are too few"):
        LabelCleaner(mode="fast", max_epochs=3).fit(inputs, given)


@pytest.mark.gpu
@pytest.mark.parametrize("model", [None, lambda: nn.Linear(3, 3)], ids=["stacked", "separate"])
def test_on_a_gpu(model):
    inputs, given, truth = blobs()
    cleaner = LabelCleaner(model, device="cuda").fit(inputs, given)
    assert auroc(given != truth, cleaner.label_quality_) > 0.97
    assert cleaner.predict(inputs).shape == (300,)
