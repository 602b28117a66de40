"""The runs by which phase labels are chosen and judged, as they were written down.

`development` and `judgement` were written down together, before any run of the latter was made. Its runs were looked at
once; what they showed led to three repairs, for which `confirmation` was added, and looked at once after them. Since
then all three have been seen, and count as development, with `further` runs where numbers lay close.

`second` is the second judgement. Its runs, with seeds that were used nowhere else, were written down before one of them
was made, and looked at once, after the rule was final. The rule was changed after that, so they count as development.

`third` is the third judgement, written down and begun as the second was, and looked at once, after the changed rule was
final. Learning rates, widths and epochs are such that pilot runs with other seeds memorised their labels. Its runs are
made in a drawn order, so that whatever part of them is done is a fair sample. The rule was changed again after that.

`fourth` is the fourth judgement, written down and begun in the same way: all kinds of runs of the second judgement, the
hardest so far, and from the third the kinds at which rules have failed most (images of CIFAR-10, pair noise,
convolutional networks), with seeds that were used nowhere else. The rule was changed again after that, a little.

`fifth` is the fifth judgement, written down in the same way before one of its runs was made. It has all breadth of the
issue, and fewer runs of a kind. Settings were taken by breadth, by how long they take, and by one principle: earlier
runs of the same settings with other seeds, by whatever list, ended at a training error of at most .05, so that there is
a phase III for the test error to show. (The fourth list has runs that stop long before.) Seeds were used nowhere else.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

HALVES = ("development", "judgement", "confirmation", "further", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Run:
    """One training run of the grid."""

    half: str
    data: str = "digits"
    train_samples: int | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    init: str = "default"
    optimiser: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr: float = 0.1
    batch_size: int = 25
    scaling: str = "standard"
    noise: str = "symmetric"
    rate: float = 0.5
    epochs: int = 250
    measurements: int = 64
    seed: int = 0
    afterwards: float = 2.5  # a nearly trained run goes on to as many times the steps that took it there, then stops

    @property
    def name(self) -> str:
        """All settings that differ from the defaults, in one word."""
        usual = asdict(Run(self.half))
        told = {key: value for key, value in asdict(self).items() if value != usual[key]}
        words = ["x".join(map(str, v)) if isinstance(v, tuple | list) else f"{k}={v}" for k, v in told.items()]
        return "_".join([self.half, *words])


def grid() -> list[Run]:
    """All runs."""
    parts = (_development, _judgement, _confirmation, _further_development, _second, _third, _fourth, _fifth)
    return [run for part in parts for run in part()]


def _development() -> list[Run]:
    run = Run("development")
    digits = [replace(run, rate=rate / 10, seed=rate % 3) for rate in range(10)]
    digits += [
        replace(run, lr=0.05, scaling=scaling, rate=rate, seed=1)
        for scaling in ("standard", "unit")
        for rate in (0.3, 0.6)
    ]
    digits += [replace(run, noise="pair", rate=0.35, seed=2), replace(run, noise="incl", rate=0.4, seed=1)]
    digits += [
        replace(run, hidden=(64,), batch_size=100, lr=0.3, epochs=900, rate=rate, seed=2)
        for rate in (0.0, 0.2, 0.5, 0.7)
    ]
    tanh = replace(run, activation="tanh", init="xavier", batch_size=5, lr=0.03, epochs=100)
    digits += [replace(tanh, rate=rate) for rate in (0.0, 0.3, 0.5)]
    digits += [replace(run, momentum=0.9, weight_decay=1e-4, lr=0.01, rate=rate) for rate in (0.0, 0.3, 0.7)]
    digits += [replace(run, optimiser="adam", lr=0.003, epochs=200, rate=rate) for rate in (0.0, 0.3, 0.7)]
    mnist = replace(run, data="mnist", train_samples=2000, hidden=(50, 50), batch_size=50, lr=0.1, epochs=200)
    cifar = replace(run, data="cifar10", train_samples=2500, hidden=(64,), batch_size=50, lr=0.05, epochs=200)
    return [
        *digits,
        *[replace(mnist, rate=rate) for rate in (0.0, 0.2, 0.5, 0.9)],
        *[replace(cifar, rate=rate) for rate in (0.0, 0.3, 0.5)],
    ]


def _judgement() -> list[Run]:
    run = Run("judgement", seed=101)
    demo = [replace(run, lr=0.05, epochs=300, seed=seed) for seed in range(101, 106)]
    wide = replace(run, hidden=(100,), seed=106)
    rates = [replace(wide, rate=rate / 10, seed=110 + rate) for rate in range(10)]
    speed = [
        replace(run, hidden=(40, 40), lr=lr, scaling=scaling, rate=0.4, epochs=epochs, seed=121)
        for lr, epochs in ((0.03, 400), (0.3, 150))
        for scaling in ("standard", "unit")
    ]
    batches = [
        replace(run, batch_size=size, lr=lr, epochs=epochs, rate=rate, seed=131)
        for size, lr, epochs in ((5, 0.02, 80), (100, 0.2, 700))
        for rate in (0.0, 0.2, 0.6)
    ]
    kinds = [
        replace(run, noise=noise, rate=rate, seed=141)
        for noise, rate in (("pair", 0.2), ("pair", 0.3), ("pair", 0.4), ("incl", 0.3), ("incl", 0.5), ("incl", 0.7))
    ]
    optimisers = [
        replace(run, momentum=0.9, lr=0.02, rate=0.3, seed=151),
        replace(run, momentum=0.9, lr=0.02, rate=0.6, seed=152),
        replace(run, weight_decay=1e-3, rate=0.4, seed=153),
        replace(run, optimiser="adam", lr=0.002, rate=0.0, seed=154),
        replace(run, optimiser="adam", lr=0.002, rate=0.4, seed=154),
        replace(run, optimiser="adam", lr=0.002, rate=0.6, seed=155),
    ]
    initial = [replace(run, activation="tanh", init="xavier", rate=rate, seed=161) for rate in (0.0, 0.3, 0.6)]
    normed = [replace(run, model="mlp-batchnorm", rate=rate, seed=171) for rate in (0.0, 0.3, 0.5)]
    convolutional = [replace(run, model="cnn", hidden=(8, 16), rate=rate, seed=181) for rate in (0.0, 0.3, 0.5, 0.9)]
    mnist = replace(run, data="mnist", hidden=(60, 30), lr=0.05, batch_size=25, train_samples=2000, epochs=150)
    digits_of_mnist = [replace(mnist, rate=rate / 10, seed=190 + rate) for rate in (0, 2, 3, 5, 7, 9)]
    digits_of_mnist += [replace(mnist, scaling="unit", lr=0.15, rate=0.5, train_samples=4000, epochs=120, seed=201)]
    cifar = replace(run, data="cifar10", hidden=(100,), lr=0.04, batch_size=50, train_samples=3000, epochs=200)
    pictures = [replace(cifar, rate=rate / 10, seed=210 + rate) for rate in (0, 2, 4, 6, 9)]
    pictures += [replace(cifar, model="cnn", hidden=(8, 16), rate=0.4, lr=0.05, epochs=120, seed=221)]
    parts = (demo, rates, speed, batches, kinds, optimisers, initial, normed, convolutional, digits_of_mnist, pictures)
    return [run for part in parts for run in part]


def _confirmation() -> list[Run]:
    run = Run("confirmation", seed=301, epochs=150)
    fast = replace(run, hidden=(40, 40), lr=0.3, rate=0.4)
    return [
        replace(run, model="mlp-batchnorm", rate=0.0),
        fast,
        replace(run, rate=0.0, lr=0.05, batch_size=10, epochs=60),
        replace(run, rate=0.0, hidden=(30,), lr=0.3),
        replace(run, data="mnist", train_samples=2000, rate=0.0, hidden=(40,), epochs=80),
        replace(run, rate=0.0, activation="tanh", lr=0.05),
        replace(run, noise="pair", rate=0.25),
        replace(run, hidden=(50,), rate=0.3),
        replace(fast, seed=302),
        replace(run, rate=0.0, model="mlp-batchnorm", seed=302),
        replace(run, hidden=(80, 40), rate=0.6),
        replace(run, rate=0.9, seed=303),
    ]


def _further_development() -> list[Run]:
    """Where the verdicts' numbers lay close, then kinds of runs at which the second judgement failed."""
    run = Run("further", seed=350, afterwards=1.6, epochs=200)
    tanh = replace(run, activation="tanh", init="xavier")
    cifar = replace(
        run, data="cifar10", train_samples=2500, model="cnn", hidden=(8, 16), batch_size=50, lr=0.05, epochs=120
    )
    return [
        replace(run, rate=0.9, model="cnn", hidden=(8, 16)),
        replace(run, rate=0.9, model="mlp-batchnorm"),
        replace(tanh, rate=0.9),
        replace(tanh, rate=0.6, seed=351),
        replace(cifar, rate=0.0),
        replace(cifar, rate=0.0, model="mlp", hidden=(100,)),
        replace(run, noise="pair", rate=0.4, batch_size=100, lr=0.3, epochs=600, seed=353),
        *[replace(run, model="cnn", hidden=(16, 32), rate=rate, seed=361) for rate in (0.4, 0.6)],
        *[
            replace(
                cifar, model="mlp", hidden=(100,), train_samples=5000, lr=0.1, epochs=150, measurements=48, rate=rate,
                seed=362,
            )
            for rate in (0.2, 0.6, 0.9)
        ],
        *[replace(run, hidden=(72,), noise="pair", lr=0.05, epochs=350, rate=rate, seed=363) for rate in (0.2, 0.4)],
        replace(
            cifar, train_samples=1500, batch_size=25, momentum=0.9, lr=0.003, rate=0.3, epochs=150, measurements=48,
            seed=364,
        ),
    ]  # fmt: skip


def _second() -> list[Run]:
    run = Run("second", seed=401, afterwards=1.6, epochs=200)
    small = replace(run, hidden=(48, 48))
    rates = [replace(small, rate=rate / 10, seed=400 + rate) for rate in range(10)]
    batches = [replace(run, batch_size=5, lr=0.02, epochs=80, rate=rate, seed=411) for rate in (0.0, 0.3, 0.5, 0.7)]
    batches += [replace(run, batch_size=100, lr=0.3, epochs=600, rate=rate, seed=412) for rate in (0.0, 0.2, 0.4, 0.6)]
    speed = [
        replace(run, hidden=(60,), lr=lr, scaling=scaling, rate=0.5, epochs=epochs, seed=421)
        for lr, epochs in ((0.03, 400), (0.3, 150))
        for scaling in ("standard", "unit")
    ]
    speed += [replace(run, hidden=(60,), lr=0.03, rate=0.2, epochs=400, seed=422)]
    kinds = [
        replace(run, hidden=(80,), noise=noise, rate=rate, seed=431)
        for noise, rate in (("pair", 0.2), ("pair", 0.3), ("pair", 0.4), ("incl", 0.2), ("incl", 0.4), ("incl", 0.6))
    ]
    momentum = replace(run, momentum=0.9, lr=0.01, seed=441)
    adam = replace(run, optimiser="adam", lr=0.001, seed=443)
    optimisers = [
        replace(momentum, rate=0.2),
        replace(momentum, rate=0.5),
        replace(momentum, rate=0.0, lr=0.03),
        replace(run, weight_decay=5e-4, rate=0.3, seed=442),
        replace(run, weight_decay=5e-4, rate=0.6, seed=442),
        *[replace(adam, rate=rate) for rate in (0.0, 0.2, 0.5, 0.7)],
    ]
    tanh = replace(run, activation="tanh", init="xavier", seed=451)
    initial = [replace(tanh, rate=rate) for rate in (0.0, 0.2, 0.4, 0.7)] + [replace(run, init="xavier", seed=452)]
    normed = [replace(run, model="mlp-batchnorm", rate=rate, seed=461) for rate in (0.0, 0.2, 0.4, 0.6)]
    convolutional = [
        replace(run, model="cnn", hidden=(6, 12), rate=rate, epochs=100, seed=471) for rate in (0.0, 0.2, 0.4, 0.6, 0.9)
    ]
    mnist = replace(run, data="mnist", train_samples=2000, hidden=(50, 30), lr=0.05, epochs=120)
    digits_of_mnist = [replace(mnist, rate=rate / 10, seed=480 + rate) for rate in (0, 2, 4, 6, 8, 9)]
    digits_of_mnist += [
        replace(mnist, activation="tanh", init="xavier", scaling="unit", lr=0.1, rate=0.5, seed=490),
        replace(mnist, noise="pair", rate=0.3, seed=491),
        replace(mnist, batch_size=100, lr=0.2, rate=0.3, epochs=300, seed=492),
        replace(mnist, model="cnn", hidden=(4, 8), rate=0.4, epochs=50, train_samples=1500, seed=493),
    ]
    cifar = replace(
        run, data="cifar10", train_samples=5000, hidden=(100,), lr=0.05, batch_size=50, epochs=100, measurements=48
    )
    pictures = [replace(cifar, rate=rate / 10, seed=500 + rate) for rate in (0, 2, 4, 6, 9)]
    convolved = replace(cifar, model="cnn", hidden=(6, 12), train_samples=1500, batch_size=25, epochs=60, seed=511)
    pictures += [replace(convolved, rate=rate) for rate in (0.0, 0.3)]
    pictures += [replace(cifar, activation="tanh", train_samples=2500, rate=0.5, seed=512)]
    parts = (rates, batches, speed, kinds, optimisers, initial, normed, convolutional, digits_of_mnist, pictures)
    return [run for part in parts for run in part]


def _third() -> list[Run]:
    run = Run("third", seed=601, afterwards=1.6, epochs=250)
    rates = [replace(run, hidden=(56, 40), rate=rate / 10, seed=600 + rate) for rate in range(10)]
    batches = [replace(run, batch_size=5, lr=0.02, epochs=120, rate=rate, seed=611) for rate in (0.0, 0.3, 0.6)]
    batches += [replace(run, batch_size=100, lr=0.3, epochs=900, rate=rate, seed=612) for rate in (0.0, 0.2, 0.5, 0.7)]
    wide = replace(run, hidden=(100,), rate=0.4, seed=621)
    speed = [
        replace(wide, lr=0.03, epochs=700),
        replace(wide, lr=0.1, scaling="unit", epochs=700),
        replace(wide, lr=0.3, epochs=250),
        replace(wide, lr=0.3, scaling="unit", epochs=500),
        replace(wide, lr=0.3, scaling="unit", epochs=500, rate=0.2, seed=622),
    ]
    kinds = [
        replace(run, hidden=(72,), noise=noise, rate=rate, lr=lr, epochs=350, seed=seed)
        for noise, rate, lr, seed in (
            ("pair", 0.2, 0.05, 631), ("pair", 0.3, 0.1, 632), ("pair", 0.4, 0.05, 633),
            ("incl", 0.2, 0.1, 634), ("incl", 0.5, 0.05, 635), ("incl", 0.7, 0.1, 636),
        )
    ]  # fmt: skip
    momentum = replace(run, momentum=0.9, lr=0.01, seed=641)
    adam = replace(run, optimiser="adam", lr=0.002, epochs=150, seed=643)
    optimisers = [replace(momentum, rate=rate) for rate in (0.0, 0.3, 0.6)]
    optimisers += [replace(run, weight_decay=5e-4, rate=rate, seed=642) for rate in (0.2, 0.5)]
    optimisers += [replace(adam, rate=rate) for rate in (0.0, 0.3, 0.6)]
    tanh = replace(run, activation="tanh", init="xavier", seed=651)
    initial = [replace(tanh, rate=rate) for rate in (0.0, 0.3, 0.6)]
    initial += [replace(run, init="xavier", rate=0.4, seed=652)]
    normed = [replace(run, model="mlp-batchnorm", rate=rate, seed=661) for rate in (0.0, 0.3, 0.5)]
    convolutional = [
        replace(run, model="cnn", hidden=(16, 32), rate=rate, epochs=200, seed=671)
        for rate in (0.0, 0.2, 0.4, 0.6, 0.9)
    ]
    mnist = replace(run, data="mnist", train_samples=2000, hidden=(50, 30), lr=0.05, epochs=150)
    digits_of_mnist = [replace(mnist, rate=rate / 10, seed=680 + rate) for rate in (0, 2, 3, 5, 7, 9)]
    digits_of_mnist += [
        replace(mnist, activation="tanh", init="xavier", scaling="unit", lr=0.1, rate=0.4, seed=690),
        replace(mnist, noise="pair", rate=0.25, seed=691),
        replace(mnist, batch_size=100, lr=0.2, rate=0.6, epochs=400, seed=692),
        replace(
            mnist, model="cnn", hidden=(6, 12), momentum=0.9, lr=0.005, rate=0.4, epochs=100, train_samples=1000,
            seed=693,
        ),
    ]  # fmt: skip
    cifar = replace(run, data="cifar10", train_samples=5000, hidden=(100,), batch_size=50, epochs=150, measurements=48)
    pictures = [replace(cifar, rate=rate / 10, seed=700 + rate) for rate in (0, 2, 4, 6, 9)]
    pictures += [replace(cifar, activation="tanh", train_samples=2500, lr=0.05, rate=0.5, seed=712)]
    convolved = replace(
        cifar, model="cnn", hidden=(8, 16), train_samples=1500, batch_size=25, momentum=0.9, lr=0.003, seed=711
    )
    pictures += [replace(convolved, rate=rate) for rate in (0.0, 0.3)]
    parts = (rates, batches, speed, kinds, optimisers, initial, normed, convolutional, digits_of_mnist, pictures)
    runs = [run for part in parts for run in part]
    random.Random(3).shuffle(runs)
    return runs


def _fourth() -> list[Run]:
    hard = [run for run in _third() if run.data == "cifar10" or run.noise == "pair" or run.model == "cnn"]
    runs = [replace(run, half="fourth", seed=run.seed + 400) for run in [*_second(), *hard]]
    random.Random(4).shuffle(runs)
    return runs


def _fifth() -> list[Run]:
    run = Run("fifth", seed=1401, afterwards=1.6, epochs=250)
    digits = [replace(run, hidden=(56, 40), rate=rate / 10, seed=1400 + rate) for rate in (0, 2, 4, 5, 6, 7, 9)]
    digits += [replace(run, batch_size=5, lr=0.02, epochs=120, rate=rate, seed=1411) for rate in (0.0, 0.3, 0.6)]
    digits += [replace(run, batch_size=100, lr=0.3, epochs=900, rate=rate, seed=1412) for rate in (0.2, 0.7)]
    wide = replace(run, hidden=(100,), rate=0.4, seed=1421)
    digits += [
        replace(wide, lr=0.03, epochs=700),
        replace(wide, lr=0.3),
        replace(wide, lr=0.3, scaling="unit", epochs=500),
        replace(wide, lr=0.3, scaling="unit", epochs=500, rate=0.2, seed=1422),
    ]
    digits += [
        replace(run, hidden=(72,), noise=noise, rate=rate, lr=lr, epochs=350, seed=seed)
        for noise, rate, lr, seed in (
            ("pair", 0.2, 0.05, 1431), ("pair", 0.3, 0.1, 1432), ("pair", 0.4, 0.05, 1433),
            ("incl", 0.2, 0.1, 1434), ("incl", 0.7, 0.1, 1436),
        )
    ]  # fmt: skip
    digits += [replace(run, momentum=0.9, lr=0.01, rate=rate, seed=1441) for rate in (0.0, 0.6)]
    digits += [replace(run, weight_decay=5e-4, rate=0.5, seed=1442)]
    digits += [replace(run, optimiser="adam", lr=0.001, epochs=200, rate=rate, seed=1443) for rate in (0.0, 0.5)]
    digits += [replace(run, activation="tanh", init="xavier", rate=0.6, seed=1451)]
    digits += [replace(run, init="xavier", rate=0.4, seed=1452)]
    digits += [replace(run, model="mlp-batchnorm", rate=rate, seed=1461) for rate in (0.0, 0.5)]
    digits += [
        replace(run, model="cnn", hidden=(16, 32), rate=rate, epochs=200, seed=1471) for rate in (0.0, 0.2, 0.6, 0.9)
    ]
    mnist = replace(run, data="mnist", train_samples=2000, hidden=(50, 30), lr=0.05, epochs=150)
    mnists = [replace(mnist, rate=rate / 10, seed=1480 + rate) for rate in (0, 2, 5, 7, 9)]
    mnists += [
        replace(mnist, activation="tanh", init="xavier", scaling="unit", lr=0.1, rate=0.4, seed=1490),
        replace(mnist, noise="pair", rate=0.25, seed=1491),
        replace(mnist, batch_size=100, lr=0.2, rate=0.6, epochs=400, seed=1492),
    ]
    cifar = replace(run, data="cifar10", train_samples=5000, hidden=(100,), batch_size=50, epochs=150, measurements=48)
    small = replace(cifar, train_samples=3000, lr=0.04, epochs=200, measurements=64)
    pictures = [replace(cifar, rate=rate / 10, seed=1500 + rate) for rate in (0, 2)]
    pictures += [replace(small, rate=rate / 10, seed=1500 + rate) for rate in (4, 6)]
    pictures += [replace(cifar, activation="tanh", train_samples=2500, lr=0.05, rate=0.5, seed=1512)]
    pictures += [
        replace(
            cifar, model="cnn", hidden=(8, 16), train_samples=1500, batch_size=25, momentum=0.9, lr=0.003, rate=0.3,
            seed=1511,
        )
    ]  # fmt: skip
    runs = [*digits, *mnists, *pictures]
    random.Random(5).shuffle(runs)
    return runs
