"""RunConfig: all that decides a run of the main job; it is written into the run folder and read back to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sgdkern.data import NOISE_KINDS, SCALINGS, NoiseKind, Scaling
from sgdkern.data_sources import LOADERS
from sgdkern.training import ACTIVATIONS, MODELS

_PURPOSES = ("split", "noise", "weights", "order", "probe", "retraining")


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run; the defaults are the embedded demonstration, half of whose labels are wrong.

    Attributes:
        dataset: ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10`` or ``folder``.
        data_root: Folder that holds the data; digits need none.
        download: Whether torchvision may fetch what is missing.
        train_samples: Training samples to keep; None for all of digits and of a folder, 4,000 of the others.
        test_samples: Test samples to keep; None for all.
        image_size: Side of the images of a folder.
        scaling: ``standard`` or ``unit``.
        noise: ``symmetric``, ``incl``, ``pair`` or ``none``.
        noise_rate: Share of the training labels that are replaced.
        model: ``mlp`` or ``cnn``.
        hidden: Widths or channels.
        activation: ``relu`` or ``tanh``.
        lr: Learning rate.
        batch_size: B.
        epochs: How often every sample is visited.
        momentum: Of SGD.
        weight_decay: Of SGD.
        measurements: About how many measurements, evenly spaced in the logarithm of the step.
        spectrum_every: The noise spectrum is taken at every so many measurements.
        groups: ``classes`` follows how the gradients of the classes align, and what chance gives, at the measurements
            that take the spectrum; a file (one group an image of the source: a ``.npy`` array, or a line each) does it
            for sources, annotators, …; ``none``.
        keep_best: Whether the weights of phase II's best moment are kept in the run folder.
        stop_at_alarm: Whether training ends where phase III is seen to have begun.
        seed: Draws the split, the noise, the weights and the order of the samples.
        device: Where the network lives.
        threads: CPU threads; with 1 the results do not depend on the machine's number of cores.
    """

    dataset: str = "digits"
    data_root: str | None = None
    download: bool = False
    train_samples: int | None = None
    test_samples: int | None = None
    image_size: int = 32
    scaling: Scaling = "standard"
    noise: NoiseKind = "symmetric"
    noise_rate: float = 0.5
    model: str = "mlp"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    lr: float = 0.05
    batch_size: int = 25
    epochs: int = 400
    momentum: float = 0.0
    weight_decay: float = 0.0
    measurements: int = 100
    spectrum_every: int = 5
    groups: str = "none"
    keep_best: bool = False
    stop_at_alarm: bool = False
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "dataset": tuple(LOADERS),
            "scaling": SCALINGS,
            "noise": NOISE_KINDS,
            "model": tuple(MODELS),
            "activation": tuple(ACTIVATIONS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"run: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        counts = ("image_size", "batch_size", "epochs", "spectrum_every", "threads")
        positive = {name: getattr(self, name) for name in (*counts, "train_samples", "test_samples")}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"run: {name} must be at least 1, got {value}.")
        if self.measurements < 2:
            raise ValueError(f"run: measurements must be at least 2, got {self.measurements}.")
        if not 0.0 <= self.noise_rate <= 1.0:
            raise ValueError(f"run: noise_rate must be a share between 0 and 1, got {self.noise_rate}.")
        if self.lr <= 0.0 or not 0.0 <= self.momentum < 1.0 or self.weight_decay < 0.0:
            raise ValueError(
                "run: lr must be above 0, momentum in [0, 1), weight_decay at least 0, "
                f"got lr={self.lr}, momentum={self.momentum}, weight_decay={self.weight_decay}."
            )
        if not self.hidden or min(self.hidden) < 1 or self.seed < 0:
            raise ValueError(
                f"run: hidden must be one or more widths of at least 1 and seed at least 0, got {list(self.hidden)} "
                f"and {self.seed}."
            )

    @property
    def kept_train_samples(self) -> int | None:
        """How many training samples are kept, the default resolved."""
        if self.train_samples is not None or self.dataset in ("digits", "folder"):
            return self.train_samples
        return 4000

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for each thing that is drawn, so that no two draws are the same by accident.

        Args:
            purpose: ``split``, ``noise``, ``weights``, ``order``, ``probe`` or ``retraining``.

        Returns:
            The seed.
        """
        return int(np.random.SeedSequence([self.seed, _PURPOSES.index(purpose)]).generate_state(1)[0])

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them.

        Returns:
            Name to value.
        """
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """Read what :meth:`as_dict` wrote.

        Args:
            settings: Name to value; what is missing takes its default.

        Returns:
            The settings.

        Raises:
            ValueError: If a name is unknown or a value cannot be used.
        """
        unknown = set(settings) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"run: settings must be those that this version knows, got {', '.join(sorted(unknown))}. "
                "The run folder may come from another version of sgdkern."
            )
        values = dict(settings)
        if "hidden" in values:
            values["hidden"] = tuple(int(width) for width in values["hidden"])
        return cls(**values)
