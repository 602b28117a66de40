"""LabelCleaner: a scikit-learn estimator that finds wrong labels and learns from the right ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import Dataset

from sgdkern.cleaning.confusion import NoiseMatrix, noise_matrix, noise_rates_by
from sgdkern.cleaning.effort import SEPARATE, STACKED, Effort
from sgdkern.cleaning.features import Projection, fit_projection
from sgdkern.cleaning.members import Members, SeparateModels, StackedMLP
from sgdkern.cleaning.mixture import agreement_among_sure, probability_wrong, rate_among_sure
from sgdkern.cleaning.rounds import Round, Schedule, train_round
from sgdkern.cleaning.samples import (
    checked_device,
    checked_labels,
    checked_sources,
    collect,
    encoded_labels,
    warn_if_few,
)
from sgdkern.cleaning.scores import quality
from sgdkern.cleaning.table import LabelIssues

Array = npt.NDArray[Any]

INPUT_NORM = 10.0  # root mean square length of the default network's inputs; its learning rate belongs to it
FEW_CONTRADICTED = 0.01  # with a smaller share of labels contradicted there is nothing to drop that would matter
STILL_LEARNING = 0.05  # a rise of the held-out accuracy over the last third of training that is worth going on for


class PhaseSpan(NamedTuple):
    """A phase of the first round of training, in steps."""

    name: str
    start: int
    end: int


class LabelCleaner(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Find wrong labels by training a few networks and averaging margins until just before memorisation.

    Each network leaves a part of the data out; the agreement on the parts left out peaks before the networks begin to
    memorise wrong labels, and training stops at 1.5 times that. A sample's score is the margin of its given label,
    averaged over training and networks. Labels with a negative score are dropped, and in further rounds fresh networks
    are trained on the rest; the scores of all rounds are averaged, later ones counting more. Issues are the labels with
    a negative score, but no more of them than the noise rate found. Nothing need be known of the noise.

    Args:
        model: None for a stack of small ReLU networks; or a torch module, copied with its weights for each network;
            or a function of no arguments that makes a fresh module. It maps inputs [B, ...] to outputs [B, C].
        mode: "default", or "fast" for fewer networks and rounds.
        hidden: widths of the hidden layers of the default network.
        num_members: networks a round; None for what the mode says.
        num_rounds: rounds of training; None for what the mode says.
        num_folds: each network leaves one of so many parts of the data out.
        max_epochs: most epochs of the first round; None for what the mode says: 30, for a model of one's own 7 or 5.
        batch_size: samples a step.
        lr: learning rate of SGD.
        momentum: momentum of SGD.
        optimizer: for a model of one's own: a function of its parameters that makes a torch optimiser; None for SGD.
        max_features: the default network sees so many leading principal components at most.
        classes: all labels there may be, in sorted order; None for those that occur in y.
        device: where to compute; None for the CPU.
        random_state: seed of everything random.

    Attributes:
        label_quality_: [N] float64 in [0, 1], lower is more suspicious, below 0.5 is an issue.
        is_label_issue_: [N] bool.
        predicted_label_: [N] the label that networks which have not seen the sample give it.
        p_wrong_: [N] estimated probability that the given label is wrong.
        issues_: all of these as a `LabelIssues` table.
        noise_rate_: a float with an interval, ``.low`` and ``.high``, and ``.covers``, what the interval covers; where
            the networks are too weak to tell it is an upper bound, with a warning, and the interval begins at 0.
        noise_matrix_: which label is given for which, a `NoiseMatrix`.
        class_noise_rates_: noise rate by given label.
        source_noise_rates_: noise rate by source; only after ``fit(..., sources=...)``.
        cleaning_time_: step of the first round up to which margins were averaged.
        phases_: fast learning ("I") and the time before memorisation ("II") in the first round, in steps.
        classes_: [C] the labels.
        n_features_in_: features of a sample.

    Reference:
        Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking"; the table that
        decided the defaults is in docs/cleaning.md.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 3, 300)
        >>> X = np.eye(3)[y] * 4 + rng.normal(size=(300, 3))
        >>> y[:30] = (y[:30] + 1) % 3  # wrong
        >>> cleaner = LabelCleaner(mode="fast").fit(X, y)
        >>> bool(cleaner.is_label_issue_[:30].mean() > 0.8), bool(cleaner.is_label_issue_[30:].mean() < 0.1)
        (True, True)
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        *,
        mode: Literal["default", "fast"] = "default",
        hidden: tuple[int, ...] = (50, 50),
        num_members: int | None = None,
        num_rounds: int | None = None,
        num_folds: int = 5,
        max_epochs: int | None = None,
        batch_size: int = 50,
        lr: float = 0.03,
        momentum: float = 0.9,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        max_features: int = 100,
        classes: Array | None = None,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.model = model
        self.mode = mode
        self.hidden = hidden
        self.num_members = num_members
        self.num_rounds = num_rounds
        self.num_folds = num_folds
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.optimizer = optimizer
        self.max_features = max_features
        self.classes = classes
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sources: Array | None = None,
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> LabelCleaner:
        """Find the wrong labels of y.

        Args:
            X: array or tensor [N, F] or [N, ...], or a torch Dataset of inputs or (input, label) pairs.
            y: [N] labels, integers or strings; None where the Dataset has them.
            sources: [N] who or what gave each label, for noise rates by source.
            on_epoch: called with the round (from 1) and the epoch (from 1) as training goes on.

        Returns:
            Itself.

        Raises:
            ValueError: if a setting, a shape, a value or a label cannot be used.
        """
        effort = self.effort()
        device = checked_device(self.device)
        inputs, codes = self._checked(X, y)
        sources = checked_sources(sources, len(codes))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        inputs = inputs.to(device)
        labels = torch.from_numpy(codes).to(device)
        self.projection_: Projection | None = None
        if self.model is None:
            self.projection_ = fit_projection(inputs, max_features=self.max_features, norm=INPUT_NORM)
            inputs = self.projection_(inputs)

        with seeded(seed, device):
            rounds, score = self._train(inputs, labels, effort, generator, on_epoch)
        self._conclude(score.cpu().numpy() / sum(range(1, len(rounds) + 1)), codes, rounds, sources)
        return self

    def _train(
        self,
        inputs: Tensor,
        labels: Tensor,
        effort: Effort,
        generator: torch.Generator,
        on_epoch: Callable[[int, int], None] | None,
    ) -> tuple[list[Round], Tensor]:
        """Round after round, each without the labels that those before contradict: rounds, and summed scores [N]."""
        device = labels.device
        rounds: list[Round] = []
        kept = torch.ones(len(labels), dtype=torch.bool, device=device)
        score = torch.zeros(len(labels), dtype=torch.float64, device=device)
        for number in range(1, effort.rounds + 1):
            if rounds and int(kept.sum()) <= 2 * self.num_folds:  # too few labels are left that nothing contradicts
                break
            self.members_ = self._make_members(effort.members, inputs, generator, device)
            latest = train_round(
                self.members_,
                inputs,
                labels,
                kept,
                Schedule(self.num_folds, self.batch_size, effort.epochs(number), effort.min_steps),
                generator=generator,
                on_epoch=None if on_epoch is None else lambda epoch, number=number: on_epoch(number, epoch),  # type: ignore[misc]
            )
            self._check_finite(latest.margins)
            rounds.append(latest)
            # later rounds count more: fewer wrong labels were trained on, and the first keeps the average steady
            score += number * latest.margins / latest.margins.std().clamp(min=1e-12)
            kept = score >= 0
            if float((~kept).double().mean()) < FEW_CONTRADICTED:  # another round would train on nearly the same labels
                break
        return rounds, score

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, averaged over the networks of the last round, [N, C]."""
        check_is_fitted(self, "issues_")
        inputs = self._inputs(X, reset=False).to(checked_device(self.device))
        if self.projection_ is not None:
            inputs = self.projection_(inputs)
        everything = torch.arange(len(inputs), device=inputs.device).expand(self.members_.num_members, -1)
        outputs = self.members_.logits(inputs, everything)[..., : len(self.classes_)]
        probabilities: Array = torch.softmax(outputs.double(), dim=-1).mean(dim=0).cpu().numpy()
        return probabilities

    def predict(self, X: Any) -> Array:
        """Return the most probable labels, [N], in the vocabulary of y."""
        probabilities = self.predict_proba(X)
        labels: Array = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def effort(self) -> Effort:
        """Return how many networks, rounds and epochs there will be, after checking the settings.

        Raises:
            ValueError: if a setting cannot be used.
        """
        if self.mode not in ("default", "fast"):
            raise ValueError(f"LabelCleaner: mode must be 'default' or 'fast', got {self.mode!r}.")
        usual = (STACKED if self.model is None else SEPARATE)[self.mode]
        effort = Effort(
            usual.members if self.num_members is None else self.num_members,
            usual.rounds if self.num_rounds is None else self.num_rounds,
            usual.max_epochs if self.max_epochs is None else self.max_epochs,
            usual.min_steps,
        )
        for name, value, least in (
            ("num_members", effort.members, 1),
            ("num_rounds", effort.rounds, 1),
            ("num_folds", self.num_folds, 2),
            ("max_epochs", effort.max_epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("max_features", self.max_features, 1),
        ):
            if value < least:
                raise ValueError(f"LabelCleaner: {name} must be at least {least}, got {value}.")
        return effort

    def _checked(self, X: Any, y: Any) -> tuple[Tensor, Array]:
        """Return inputs [N, ...] float32 and label codes [N] int64, after saying what is wrong with them."""
        if isinstance(X, Dataset):
            X, found = collect(X)
            y = found if y is None else y
        if y is None:
            raise ValueError(
                "LabelCleaner: requires y to be passed, but the target y is None. "
                "Pass the labels, or a Dataset of (input, label) pairs."
            )
        inputs = self._inputs(X, reset=True)
        given = checked_labels(y, len(inputs))
        self.classes_ = np.unique(given if self.classes is None else np.asarray(self.classes))
        codes = encoded_labels(given, self.classes_)
        if len(codes) < 2 * self.num_folds:
            raise ValueError(
                f"LabelCleaner: at least {2 * self.num_folds} samples are needed to leave each of {self.num_folds} "
                f"parts out, got {len(codes)}. Lower num_folds, or label more samples."
            )
        warn_if_few(codes, self.classes_, stacklevel=4)
        return inputs, codes

    def _inputs(self, X: Any, *, reset: bool) -> Tensor:
        """Return inputs as a float32 tensor [N, ...], finite."""
        if isinstance(X, Dataset):
            X, _ = collect(X)
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        values = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], allow_nd=True)
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def _make_members(
        self, num_members: int, inputs: Tensor, generator: torch.Generator, device: torch.device
    ) -> Members:
        """Make fresh networks."""
        if self.model is None:
            return StackedMLP(
                [inputs.shape[1], *self.hidden, len(self.classes_)],
                num_members,
                generator=generator,
                lr=self.lr,
                momentum=self.momentum,
                device=device,
            )
        models = [
            copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model() for _ in range(num_members)
        ]
        models[0].to(device).eval()
        with torch.no_grad():
            outputs = models[0](inputs[:1])
        if outputs.ndim != 2 or outputs.shape[1] < len(self.classes_):
            raise ValueError(
                f"LabelCleaner: the model must return [B, C] with C at least {len(self.classes_)} classes, "
                f"got {list(outputs.shape)} for one sample."
            )
        optimizer = self.optimizer or (lambda weights: torch.optim.SGD(weights, lr=self.lr, momentum=self.momentum))
        return SeparateModels(models, optimizer, device=device)

    def _check_finite(self, margins: Tensor) -> None:
        """Say so if training diverged."""
        if not bool(torch.isfinite(margins).all()):
            raise RuntimeError(f"LabelCleaner: training diverged at lr={self.lr}. Lower lr, or scale the inputs.")

    def _agreement(self, first: Round) -> float:
        """Compare held-out networks with trained ones in the first round, where no label has been dropped."""
        seen_too = first.held_out & first.trained_logits.any(dim=1)
        kinds = (first.held_out_logits, first.trained_logits)
        held_out, trained = (logits[seen_too, : len(self.classes_)].cpu().numpy() for logits in kinds)
        return agreement_among_sure(held_out, trained) if len(held_out) else 0.0

    def _conclude(self, score: Array, codes: Array, rounds: list[Round], sources: Array | None) -> None:
        """Set the fitted attributes from the scores and the rounds."""
        alone = np.bincount(codes, minlength=len(self.classes_))[codes] == 1
        first = rounds[0]
        held_out = rounds[-1].held_out_logits[:, : len(self.classes_)].cpu().numpy()
        predicted = held_out.argmax(axis=1)
        unseen = rounds[-1].held_out.cpu().numpy()
        _warn_if_learning(first, self.effort().max_epochs)
        self.noise_rate_ = rate_among_sure(held_out[unseen], codes[unseen], agreement=self._agreement(first))
        if self.noise_rate_.is_upper_bound:
            warnings.warn(
                "LabelCleaner: the networks are often wrong even where they are surest, so that the noise rate cannot "
                f"be told: {self.noise_rate_.high:.2f} is an upper bound, and many of the labels flagged will be "
                "right. Review the worst by rank instead of dropping what is flagged; or pass embeddings, a better "
                "model or more samples.",
                UserWarning,
                stacklevel=3,
            )
        # A negative margin is an issue, but hard samples with right labels have some too: no more than the rate allows;
        # no more than its estimate where the upper end is so far up that it would let most of them through.
        rate = self.noise_rate_
        most = rate.estimate if rate.is_upper_bound else rate.high
        cut = 0.0 if (score < 0).mean() <= most else min(0.0, float(np.quantile(score, rate.estimate)))
        score = np.where(alone, cut, score)
        p_wrong = probability_wrong(score, cut)
        self.rounds_ = tuple(rounds)
        self.cleaning_time_ = first.last_epoch * first.steps_per_epoch
        self.phases_ = _spans(first)
        self.issues_ = LabelIssues(
            is_label_issue=score < cut,
            label_quality=quality(score, cut),
            given_label=self.classes_[codes],
            predicted_label=self.classes_[predicted],
            p_wrong=p_wrong,
            noise_rate=self.noise_rate_,
            method=f"aum, {len(rounds)} round{'s' if len(rounds) > 1 else ''} of {self.members_.num_members}",
            cleaning_step=float(self.cleaning_time_),
        )
        self.label_quality_ = self.issues_.label_quality
        self.is_label_issue_ = self.issues_.is_label_issue
        self.predicted_label_ = self.issues_.predicted_label
        self.p_wrong_ = self.issues_.p_wrong
        self.noise_matrix_: NoiseMatrix = noise_matrix(self.issues_, classes=self.classes_)
        self.class_noise_rates_ = noise_rates_by(self.issues_, self.issues_.given_label)
        if sources is not None:
            self.source_noise_rates_ = noise_rates_by(self.issues_, sources)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw what a user's model draws (weights, dropout) from a seed, and give the generators their states back."""
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for number in devices:
            torch.cuda.default_generators[number].manual_seed(seed)
        yield


def _warn_if_learning(first: Round, max_epochs: int) -> None:
    """Say so where the epochs allowed were too few for the networks to learn what they can."""
    accuracy = first.held_out_accuracy
    before = accuracy[-1 - max(1, len(accuracy) // 3)] if len(accuracy) > 1 else 0.0
    if len(accuracy) == max_epochs and accuracy[-1] - before > STILL_LEARNING:
        warnings.warn(
            f"LabelCleaner: the networks were still learning after {max_epochs} epochs (held-out accuracy "
            f"{accuracy[-1]:.2f}, before {before:.2f}). Raise max_epochs or lr for a sharper ranking.",
            UserWarning,
            stacklevel=4,
        )


def _spans(first: Round) -> list[PhaseSpan]:
    """Phase I lasts until the held-out accuracy has gone nine tenths of its way, phase II until training stopped."""
    accuracy = np.array(first.held_out_accuracy)
    goal = accuracy[0] + 0.9 * (accuracy.max() - accuracy[0])
    learned = int(np.argmax(accuracy >= goal)) + 1
    steps, last = first.steps_per_epoch, max(first.last_epoch, learned)
    return [PhaseSpan("I", 0, learned * steps), PhaseSpan("II", learned * steps, last * steps)]
