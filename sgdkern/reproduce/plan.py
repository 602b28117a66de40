"""Plan: what the user may choose, and the settings of each experiment: those found to be closest to the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgdkern.reproduce.samples import Samples
from sgdkern.reproduce.training import Training

# Data sets that the experiments were tried on, and what has to differ from MNIST: digits have a third of the steps an
# epoch, so that five times the learning rate brings the phases to about the same epochs.
DATASETS: dict[str, float] = {"mnist": 1.0, "cifar10": 1.0, "digits": 5.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to reproduce the figures with; None leaves a setting as the figure has it (docs/paper.md lists them).

    Attributes:
        dataset: ``mnist``, ``cifar10`` or ``digits``.
        data_root: Folder that holds the data; digits need none.
        seeds: One run each; error bars are over these.
        noise_rates: ρ of the sweeps.
        shown_rate: ρ of the figures that show a single one; one of ``noise_rates``.
        per_class: Training samples of each class.
        test_samples: Test samples; None for all.
        epochs: Of every training.
        lr: Learning rate of every training.
        hidden: Widths of every network.
        batch_size: B.
        measurements: Of the order parameters in a run.
        spectra: Measured in a run that measures any.
    """

    dataset: str = "mnist"
    data_root: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    noise_rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    shown_rate: float = 0.5
    per_class: int = 400
    test_samples: int | None = None
    epochs: int | None = None
    lr: float | None = None
    hidden: tuple[int, ...] | None = None
    batch_size: int = 25
    measurements: int = 80
    spectra: int = 16

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ValueError(f"reproduce: dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}.")
        if self.dataset != "digits" and self.data_root is None:
            raise ValueError(f"reproduce: {self.dataset} needs the folder that holds the data. Give --data-root.")
        counts = ("per_class", "test_samples", "epochs", "batch_size", "spectra")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"reproduce: {name} must be at least 1, got {value}.")
        if self.measurements < 8:
            raise ValueError(f"reproduce: measurements must be at least 8, got {self.measurements}.")
        if self.lr is not None and self.lr <= 0.0:
            raise ValueError(f"reproduce: lr must be above 0, got {self.lr}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"reproduce: seeds must be different whole numbers from 0 on, got {list(self.seeds)}.")
        if not self.noise_rates or not all(0.0 < rate < 1.0 for rate in self.noise_rates):
            raise ValueError(f"reproduce: noise_rates must lie between 0 and 1, got {list(self.noise_rates)}.")
        if self.shown_rate not in self.noise_rates:
            raise ValueError(
                f"reproduce: shown_rate must be one of the noise_rates {list(self.noise_rates)}, got {self.shown_rate}."
            )
        if self.hidden is not None and (len(self.hidden) < 2 or min(self.hidden) < 1):
            raise ValueError(
                "reproduce: hidden must be two or more widths of at least 1, since the spectra are those of the "
                f"weights between hidden layers, got {list(self.hidden)}."
            )

    @property
    def is_default(self) -> bool:
        """Whether these are the settings that another implementation's numbers belong to, for the rates that it has."""
        changed = (self.epochs, self.lr, self.hidden, self.test_samples) != (None, None, None, None)
        return self.dataset == "mnist" and not changed and (self.per_class, self.batch_size) == (400, 25)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them.

        Returns:
            Name to value.
        """
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def clean(self) -> list[Training]:
        """784-30-30-10 on right labels, one run a seed: Fig. 1.

        Returns:
            The trainings.
        """
        return [self._training(CLEAN, seed) for seed in self.seeds]

    def clean_spectra(self) -> list[Training]:
        """The same with tanh, whose noise spectra are taken: Fig. 2.

        Returns:
            The trainings.
        """
        return [self._training(CLEAN | TANH, seed, spectra=self.spectra) for seed in self.seeds]

    def noisy(self, rate: float | None = None) -> list[Training]:
        """784-50-50-10 with wrong labels, one run a seed: Figs. 3, 4 and 6.

        Args:
            rate: ρ; None for the one that is shown.

        Returns:
            The trainings; at the rate that is shown, R and the groups are measured too.
        """
        rate = self.shown_rate if rate is None else rate
        minibatches = 512 if rate == self.shown_rate else 0
        return [self._training(NOISY, seed, noise_rate=rate, minibatches=minibatches) for seed in self.seeds]

    def noisy_spectra(self) -> list[Training]:
        """The same with pixels in [0, 1], whose noise spectra are taken: Fig. 5.

        Returns:
            The trainings.
        """
        return [
            self._training(NOISY | UNIT, seed, noise_rate=self.shown_rate, spectra=self.spectra) for seed in self.seeds
        ]

    def _training(self, experiment: Mapping[str, Any], seed: int, **changes: Any) -> Training:
        """An experiment's training, the user's choices over the experiment's own settings."""
        samples = Samples(
            dataset=self.dataset,
            data_root=self.data_root,
            per_class=self.per_class,
            test_samples=self.test_samples,
            seed=seed,
        )
        chosen = {"epochs": self.epochs, "lr": self.lr, "hidden": self.hidden}
        settings = {"minibatches": 0, "spectra": 0, "noise_rate": 0.0, **experiment, **changes}
        if settings["noise_rate"]:
            settings["lr"] *= DATASETS[self.dataset]
        settings |= {name: value for name, value in chosen.items() if value is not None}
        return Training(
            samples=samples, batch_size=self.batch_size, measurements=self.measurements, seed=seed, **settings
        )


CLEAN: dict[str, Any] = {
    "scaling": "unit",
    "hidden": (30, 30),
    "activation": "relu",
    "initialisation": "default",
    "lr": 0.1,
    "epochs": 100,
    "minibatches": 512,
}
TANH: dict[str, Any] = {"activation": "tanh", "initialisation": "xavier", "lr": 0.01, "minibatches": 0}
NOISY: dict[str, Any] = {
    "scaling": "standard",
    "hidden": (50, 50),
    "activation": "relu",
    "initialisation": "default",
    "lr": 0.01,
    "epochs": 400,
}
UNIT: dict[str, Any] = {"scaling": "unit", "epochs": 500}
