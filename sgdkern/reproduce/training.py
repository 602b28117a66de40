"""Training: one network trained from start to end and measured on the way, which is what every figure is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdkern.capture import per_sample_gradients
from sgdkern.cleaning.mixture import fit_mixture
from sgdkern.data import corrupt_labels
from sgdkern.history import History
from sgdkern.phases import label_phases
from sgdkern.probe import Probe
from sgdkern.reproduce.job import Array, Job, Result
from sgdkern.reproduce.samples import Samples
from sgdkern.schedule import log_spaced_steps
from sgdkern.spectrum import noise_spectrum
from sgdkern.training import Trainer, build_model

_PURPOSES = ("noise", "weights", "order", "probe")
# Errors are cheap to measure: every epoch at first, then every 2 % of the time, which is finer than t_m and t_f vary.
_ERROR_SPACING = 1.02
# Eigenvalues kept of a spectrum; D_s stays below it in every run of the paper.
_EIGENVALUES = 1000


@dataclass(frozen=True, kw_only=True)
class Training(Job):
    """All that decides one training.

    Attributes:
        samples: The data.
        scaling: Of the inputs: ``unit``, pixels in [0, 1], or ``standard``, mean 0 and deviation 1.
        noise_rate: ρ, the share of the labels that are replaced by another one.
        hidden: Widths of the hidden layers.
        activation: ``relu`` or ``tanh``.
        initialisation: ``default`` (PyTorch's) or ``xavier`` (normal, biases 0).
        lr: Learning rate.
        batch_size: B.
        epochs: How often every sample is visited.
        measurements: Of the order parameters, evenly spaced in the logarithm of the step.
        minibatches: Drawn for the alignment R; with 0, groups and their random split are left out too.
        spectra: Noise spectra of the hidden-hidden weights, evenly spaced in the logarithm from epoch 1/2 on.
        seed: Draws noise, weights and order.
    """

    samples: Samples
    scaling: str
    noise_rate: float
    hidden: tuple[int, ...]
    activation: str
    initialisation: str
    lr: float
    batch_size: int
    epochs: int
    measurements: int
    minibatches: int
    spectra: int
    seed: int

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        widths = "-".join(map(str, self.hidden))
        return f"{self.samples.dataset}, {widths} {self.activation}, ρ = {self.noise_rate:g}, seed {self.seed}"

    @property
    def needs(self) -> tuple[Job, ...]:
        """The data."""
        return (self.samples,)

    def make(self, needed: Sequence[Result]) -> Result:
        """Train and measure.

        Args:
            needed: The data.

        Returns:
            Curves of errors over ``epochs`` [E]; order parameters and, of noisy runs, the training losses [T, N] and
            the mixtures fitted to them over ``probe_epochs`` [T]; spectra over ``spectrum_epochs`` [S]; the phases.
        """
        data = self.data(needed[0])
        trainer = self.trainer(data, data.inputs, data.given)
        detailed, noisy = self.minibatches > 0, self.noise_rate > 0
        probe = Probe(
            trainer.model,
            functional.cross_entropy,
            data.inputs,
            data.given,
            batch_size=self.batch_size,
            groups={"c": ~data.wrong, "w": data.wrong} if detailed and noisy else None,
            blind=detailed and noisy,
            num_minibatches=self.minibatches,
            population_size=len(data.given),
            steps_per_epoch=trainer.steps_per_epoch,
            seed=self.seed_for("probe"),
        )
        total = self.epochs * trainer.steps_per_epoch
        probed = set(log_spaced_steps(total, count=self.measurements))
        spectral = spectrum_steps(self.spectra, trainer.steps_per_epoch, total)
        errors, spectra = [], []
        for step in sorted(probed | error_steps(trainer.steps_per_epoch, total) | set(spectral)):
            trainer.advance(step - trainer.step)
            errors.append({"epochs": trainer.epoch, **_errors(trainer.model, data)})
            if step in probed:
                probe.measure(step, metrics={key: value for key, value in errors[-1].items() if key != "epochs"})
            if step in spectral:
                spectra.append(self._spectrum(trainer, data))
        arrays = {name: np.array([row[name] for row in errors]) for name in errors[0]}
        arrays |= _columns(probe.history) | _spectra(spectra)
        if noisy:
            arrays |= _losses(probe.history) | {"wrong": data.wrong.numpy()}
        return Result(arrays, {"settings": asdict(self), "phases": _phases(probe.history, trainer.steps_per_epoch)})

    def data(self, samples: Result) -> TrainingData:
        """The inputs, scaled, and the labels with their noise.

        Args:
            samples: The result of ``samples``.

        Returns:
            Tensors.
        """
        inputs, test_inputs = (torch.from_numpy(samples[name]) for name in ("train_inputs", "test_inputs"))
        if self.scaling == "standard":
            mean, deviation = float(inputs.double().mean()), float(inputs.double().std())
            inputs, test_inputs = (inputs - mean) / deviation, (test_inputs - mean) / deviation
        true = torch.from_numpy(samples["train_labels"])
        classes = int(samples.facts["classes"])
        generator = torch.Generator().manual_seed(self.seed_for("noise"))
        given = corrupt_labels(true, rate=self.noise_rate, kind="symmetric", num_classes=classes, generator=generator)
        return TrainingData(
            inputs, given, given != true, test_inputs, torch.from_numpy(samples["test_labels"]), classes
        )

    def trainer(self, data: TrainingData, inputs: Tensor, labels: Tensor) -> Trainer:
        """The network with its initial weights, and what will train it.

        Args:
            data: The data.
            inputs: Training inputs: all of the data's, or some.
            labels: Their labels.

        Returns:
            A trainer at step 0.
        """
        model = build_model(
            "mlp",
            input_shape=data.inputs.shape[1:],
            num_classes=data.classes,
            hidden=self.hidden,
            activation=self.activation,
            seed=self.seed_for("weights"),
        )
        if self.initialisation == "xavier":
            _xavier(model, torch.Generator().manual_seed(self.seed_for("weights")))
        return Trainer(
            model,
            functional.cross_entropy,
            inputs,
            labels,
            lr=self.lr,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(self.seed_for("order")),
        )

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for each thing that is drawn.

        Args:
            purpose: ``noise``, ``weights``, ``order`` or ``probe``.

        Returns:
            The seed.
        """
        return int(np.random.SeedSequence([self.seed, _PURPOSES.index(purpose)]).generate_state(1)[0])

    def _spectrum(self, trainer: Trainer, data: TrainingData) -> dict[str, Any]:
        """The noise spectrum of the weights between the hidden layers, over all training samples."""
        weights = [name for name, parameter in trainer.model.named_parameters() if parameter.ndim == 2]
        gradients = per_sample_gradients(
            trainer.model, functional.cross_entropy, data.inputs, data.given, params=weights[1:-1]
        )
        spectrum = noise_spectrum(gradients, batch_size=self.batch_size, strict=True)
        values = np.full(_EIGENVALUES, np.nan, dtype=np.float32)
        values[: len(spectrum.eigenvalues)] = spectrum.eigenvalues.numpy()[:_EIGENVALUES]
        return {
            "epochs": trainer.epoch,
            "eigenvalues": values,
            "trace": spectrum.trace,
            "dimension": spectrum.effective_dimension,
            "participation": spectrum.participation_ratio,
        }


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Tensors of one training.

    Attributes:
        inputs: [N, channels, height, width].
        given: Labels as given, [N].
        wrong: Which of them are not right, boolean [N].
        test_inputs: [M, ...].
        test_labels: [M].
        classes: Number of classes.
    """

    inputs: Tensor
    given: Tensor
    wrong: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int


def error_steps(steps_per_epoch: int, total: int) -> set[int]:
    """When errors are measured: at every epoch, and later at every 2 % of the time.

    Args:
        steps_per_epoch: Steps an epoch.
        total: Steps in all.

    Returns:
        Steps, the first and the last included.
    """
    steps, epoch = {0, total}, 1
    while epoch * steps_per_epoch < total:
        steps.add(epoch * steps_per_epoch)
        epoch = max(epoch + 1, round(epoch * _ERROR_SPACING))
    return steps


def spectrum_steps(count: int, steps_per_epoch: int, total: int) -> list[int]:
    """When spectra are measured: evenly spaced in the logarithm from half an epoch to the end.

    Args:
        count: How many; 0 for none.
        steps_per_epoch: Steps an epoch.
        total: Steps in all.

    Returns:
        Steps.
    """
    return sorted(set(np.geomspace(max(steps_per_epoch // 2, 1), total, count).round().astype(int).tolist()))


@torch.no_grad()
def _errors(model: nn.Module, data: TrainingData) -> dict[str, float]:
    """Loss and errors on both parts of the data, and on the rightly and the wrongly labelled training samples."""
    logits = model(data.inputs)
    missed = logits.argmax(1) != data.given
    test_logits = model(data.test_inputs)
    found = {
        "train_loss": float(functional.cross_entropy(logits, data.given)),
        "train_error": float(missed.double().mean()),
        "test_loss": float(functional.cross_entropy(test_logits, data.test_labels)),
        "test_error": float((test_logits.argmax(1) != data.test_labels).double().mean()),
    }
    if bool(data.wrong.any()) and not bool(data.wrong.all()):
        found["error_correct"] = float(missed[~data.wrong].double().mean())
        found["error_wrong"] = float(missed[data.wrong].double().mean())
    return found


def _columns(history: History) -> dict[str, Array]:
    """Order parameters by name, those of a partition as ``given.R_cw``."""
    arrays: dict[str, Array] = {"probe_epochs": history.epochs}
    arrays |= {name: history.column(name) for name in history[-1].values}
    for partition in sorted({name for record in history for name in record.groups}):
        names = {key for record in history if partition in record.groups for key in record.scalars(partition)}
        arrays |= {f"{partition}.{name}": history.column(name, partition) for name in sorted(names)}
    return arrays


def _losses(history: History) -> dict[str, Array]:
    """Every sample's loss, and two Gaussians fitted to them at each measurement: means, variances, weights [T, 2]."""
    losses = history.per_sample("losses")[1]
    fitted = [fit_mixture(row) for row in losses]
    return {
        "losses": losses,
        "mixture_means": np.array([mixture.means for mixture in fitted]),
        "mixture_variances": np.array([mixture.variances for mixture in fitted]),
        "mixture_weights": np.array([mixture.weights for mixture in fitted]),
    }


def _spectra(spectra: list[dict[str, Any]]) -> dict[str, Array]:
    """The spectra as arrays over their epochs."""
    return {f"spectrum_{name}": np.array([row[name] for row in spectra]) for name in (spectra[0] if spectra else ())}


def _phases(history: History, steps_per_epoch: int) -> dict[str, Any]:
    """The phases as the tool labels them, without a look at the truth; times in epochs."""
    phases = label_phases(history)
    times = {"t12": phases.t12, "t23": phases.t23, "t34": phases.t34, "cleaning": phases.cleaning_step}
    return {
        "verdict": phases.verdict,
        **{name: None if step is None else step / steps_per_epoch for name, step in times.items()},
    }


def _xavier(model: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 2 / (I + O), biases 0."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_normal_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
