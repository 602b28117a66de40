"""The paper's figures on a tiny setting: files, equal data for any number of processes, resuming, and refusals."""

import json
import os
from dataclasses import fields, replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from typer.testing import CliRunner

from sgdkern.cli import app
from sgdkern.reproduce.curves import landmarks
from sgdkern.reproduce.job import Result, file_of, load, with_needs
from sgdkern.reproduce.paper import reproduce
from sgdkern.reproduce.plan import Plan
from sgdkern.reproduce.retraining import Retraining, cleaning_row
from sgdkern.reproduce.sweep import Progress, sweep
from sgdkern.reproduce.training import error_steps, spectrum_steps

TINY = Plan(
    dataset="digits",
    seeds=(0, 1),
    noise_rates=(0.3, 0.5),
    per_class=12,
    test_samples=60,
    epochs=5,
    hidden=(5, 5),
    measurements=8,
    spectra=3,
)
OPTIONS = [
    *("--dataset", "digits", "--seeds", "0,1", "--noise-rates", "0.3,0.5", "--per-class", "12", "--test-samples", "60"),
    *("--epochs", "5", "--hidden", "5,5", "--measurements", "8", "--spectra", "3"),
]
NAMES = [f"fig{number}" for number in range(1, 7)]


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def data_of(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())["data"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures, made by the command in one process."""
    folder = tmp_path_factory.mktemp("paper") / "out"
    code, printed, told = call("all", *OPTIONS, "--jobs", 1, "--out", folder, "--json")
    assert code == 0, told
    (folder / "printed.json").write_text(printed)
    assert "fig6: 18 of 18" in told  # progress, a line a run where nobody is watching
    return folder


def test_every_figure_writes_data_a_picture_and_a_table(whole: Path) -> None:
    printed = json.loads((whole / "printed.json").read_text())
    assert list(printed) == NAMES
    page = (whole / "paper.html").read_text()
    for name in NAMES:
        told = json.loads((whole / f"{name}.json").read_text())
        assert told["data"]
        assert told["table"] == printed[name]["table"]
        assert told["seconds"] > 0 < told["cpu_seconds"]
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        table = (whole / f"{name}.md").read_text()
        assert "| quantity | paper | here |" in table
        assert "Wall time" in table
        assert f'id="{name}"' in page
    assert "http" not in page  # self-contained


def test_figures_share_their_runs(whole: Path) -> None:
    plan = TINY
    jobs = [
        *plan.clean(),
        *plan.clean_spectra(),
        *plan.noisy_spectra(),
        *(job for rate in plan.noise_rates for job in plan.noisy(rate)),
    ]
    trained = {file_of(job, whole / "runs") for job in jobs}
    assert len(trained) == 2 * (1 + 1 + 1 + 2)
    assert trained == set((whole / "runs").glob("training-*.npz"))
    assert len(list((whole / "runs").glob("retraining-*.npz"))) == 2 * 2 * 3
    assert len(list((whole / "runs").glob("samples-*.npz"))) == 2


def test_error_bars_are_over_the_seeds(whole: Path) -> None:
    third, sixth = data_of(whole, "fig3"), data_of(whole, "fig6")
    for values in (third["t_m"], third["lowest"], third["final"], sixth["a_n"], sixth["a_c"], sixth["Q_c"]):
        assert [len(seeds) for seeds in values] == [2, 2]
    assert sixth["a_n"] == [[1 - final for final in seeds] for seeds in third["final"]]


def test_two_processes_give_the_same_data(whole: Path, tmp_path: Path) -> None:
    code, _, told = call("fig4", *OPTIONS, "--jobs", 2, "--out", tmp_path / "out")
    assert code == 0, told
    assert data_of(tmp_path / "out", "fig4") == data_of(whole, "fig4")


class StoppedError(Exception):
    pass


def test_a_stopped_sweep_goes_on_where_it_was(whole: Path, tmp_path: Path) -> None:
    from sgdkern.reproduce.paper import reproduce

    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise StoppedError

    folder = tmp_path / "out"
    with pytest.raises(StoppedError):
        reproduce(["fig3"], TINY, folder, on_progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    assert len(kept) == 4
    assert not (folder / "fig3.json").exists()
    (folder / "runs" / "training-0.npz.tmp").write_bytes(b"half a fi")  # what a kill leaves
    code, _, told = call("fig3", "--resume", "--out", folder, "--jobs", 1)  # needs no settings
    assert code == 0, told
    assert "fig3: 4 of 6" in told
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert data_of(folder, "fig3") == data_of(whole, "fig3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fig7"], "there are fig1"),
        (["fig1", "--jobs", "0"], "--jobs must be at least 1"),
        (["fig1", "--dataset", "imagenet"], "dataset must be one of"),
        (["fig1"], "Give --data-root"),
        (["fig1", "--dataset", "digits", "--seeds", "0,x"], "--seeds takes numbers"),
        (["fig1", "--dataset", "digits", "--seeds", "1,1"], "seeds must be different"),
        (["fig3", "--dataset", "digits", "--noise-rates", "0.2,1.5"], "between 0 and 1"),
        (["fig3", "--dataset", "digits", "--noise-rates", "0.2"], "shown_rate must be one of"),
        (["fig2", "--dataset", "digits", "--hidden", "30"], "two or more widths"),
        (["fig2", "--dataset", "digits", "--epochs", "0"], "epochs must be at least 1"),
        (["fig2", "--dataset", "digits", "--lr", "0"], "lr must be above 0"),
        (["fig2", "--dataset", "digits", "--measurements", "3"], "measurements must be at least 8"),
    ],
)
def test_wrong_options_are_wrong_usage(arguments: list[str], words: str, tmp_path: Path) -> None:
    code, _, told = call(*arguments, "--out", tmp_path / "out")
    assert code == 2
    assert words in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_wrong_usage(whole: Path) -> None:
    code, _, told = call("fig1", *OPTIONS, "--out", whole)
    assert code == 2
    assert "must be new or empty" in told


def test_other_settings_are_not_mixed_in(whole: Path, tmp_path: Path) -> None:
    code, _, told = call("fig1", "--resume", "--epochs", 7, "--out", whole)
    assert code == 1
    assert "epochs=7 (was 5)" in told
    code, _, told = call("fig1", "--resume", "--dataset", "digits", "--out", tmp_path / "none")
    assert code == 1
    assert "must be figures to resume" in told


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    code, _, told = call("fig1", "--data-root", tmp_path, "--jobs", 1, "--out", tmp_path / "out")
    assert code == 1
    assert "mnist: 400 samples a class, seed 0: load_data: MNIST was not found" in told


def test_a_job_is_known_by_all_that_decides_it(tmp_path: Path) -> None:
    job = TINY.noisy()[0]
    changed = {"hidden": (5, 6), "samples": replace(job.samples, per_class=13), "activation": "tanh",
               "initialisation": "xavier", "scaling": "unit"}  # fmt: skip
    others = [replace(job, **{field.name: changed.get(field.name, 7)}) for field in fields(job)]
    files = {file_of(each, tmp_path) for each in (job, *others, Retraining(training=job, kept="right labels"))}
    assert len(files) == len(fields(job)) + 2
    assert file_of(replace(job), tmp_path) == file_of(job, tmp_path)


def test_needs_come_first_and_once() -> None:
    jobs = tuple(Retraining(training=each, kept="right labels") for each in TINY.noisy())
    ordered = list(with_needs((*jobs, *jobs)))
    assert len(ordered) == len(set(ordered)) == 6
    for job in ordered:
        assert all(ordered.index(need) < ordered.index(job) for need in job.needs)


def test_an_interrupted_sweep_leaves_no_process_behind(tmp_path: Path) -> None:
    """What is running ends at once, though it had an hour of work left."""

    def interrupt(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    before = set(active_children())
    long = replace(TINY, epochs=100_000)
    with pytest.raises(KeyboardInterrupt):
        sweep(long.noisy(), tmp_path, processes=2, on_progress=interrupt)
    assert set(active_children()) <= before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Result]:
    folder = tmp_path_factory.mktemp("runs")
    job = TINY.noisy_spectra()[0]
    sweep([job], folder)
    return folder, load(job.samples, folder), load(job, folder)


def test_a_training_measures_what_autograd_gives(trained: tuple[Path, Result, Result]) -> None:
    _, samples, result = trained
    job = TINY.noisy_spectra()[0]
    data = job.data(samples)
    trainer = job.trainer(data, data.inputs, data.given)
    trainer.advance(job.epochs * trainer.steps_per_epoch)
    model = trainer.model
    assert result["epochs"][-1] == job.epochs
    assert result["train_error"][-1] == float((model(data.inputs).argmax(1) != data.given).double().mean())
    assert result["test_error"][-1] == float((model(data.test_inputs).argmax(1) != data.test_labels).double().mean())
    assert int(result["wrong"].sum()) == round(0.5 * len(data.given))
    hidden = model[3].weight
    assert hidden.shape == (5, 5)
    rows = []
    for image, label in zip(data.inputs, data.given, strict=True):
        loss = functional.cross_entropy(model(image[None]), label[None])
        rows.append(torch.autograd.grad(loss, hidden)[0].flatten().double())
    eigenvalues = torch.linalg.eigvalsh(torch.cov(torch.stack(rows).T, correction=0)).flip(0)
    energy = eigenvalues.cumsum(0) / eigenvalues.sum()
    assert result["spectrum_dimension"][-1] == int((energy < 0.9).sum()) + 1
    N, B = len(data.given), job.batch_size
    expected = (N - B) / (B * (N - 1)) * eigenvalues.sum()
    assert result["spectrum_trace"][-1] == pytest.approx(float(expected), rel=1e-4)


def test_cleaning_keeps_what_lies_below_the_midpoint(whole: Path) -> None:
    runs = whole / "runs"
    job = TINY.noisy()[1]
    result = load(job, runs)
    means = result["mixture_means"]
    row = max(range(len(means)), key=lambda place: means[place, 1] - means[place, 0])
    assert cleaning_row(result, "largest gap") == row
    below = result["losses"][row] < (means[row, 0] + means[row, 1]) / 2
    facts = load(Retraining(training=job, kept="largest gap"), runs).facts
    assert (facts["kept"], facts["wrong"]) == (below.sum(), (below & result["wrong"]).sum())
    perfect = load(Retraining(training=job, kept="right labels"), runs).facts
    assert (perfect["kept"], perfect["wrong"]) == ((~result["wrong"]).sum(), 0)
    assert 0 <= perfect["accuracy"] <= 1


def test_landmarks_of_curves_drawn_by_hand() -> None:
    epochs = np.arange(0.0, 101.0)
    test = np.interp(epochs, [0, 10, 20, 40, 60, 100], [0.9, 0.2, 0.1, 0.1, 0.5, 0.5])
    test[30] -= 0.01
    test[29] = test[31] = test[28] = test[30]  # long enough to pass the running median
    train = np.interp(epochs, [0, 80, 100], [0.9, 0.005, 0.0])
    found = landmarks(Result({"epochs": epochs, "test_error": test, "train_error": train}))
    assert 28 <= found.t_m <= 31
    assert found.lowest == pytest.approx(0.09)
    assert found.final == pytest.approx(0.5)
    assert found.t_f == 80
    assert found.t_half == pytest.approx(6, abs=1)
    assert found.t12 == pytest.approx(12, abs=1)  # .1 (.9 - .09) above the lowest
    assert found.t23 == pytest.approx(42, abs=1)
    assert list(found.phases) == ["I", "II", "III", "IV"]
    assert found.middle("IV") == pytest.approx(np.sqrt(80 * 100))
    never = landmarks(Result({"epochs": epochs, "test_error": test, "train_error": train + 0.1}))
    assert np.isnan(never.t_f)
    assert list(never.phases) == ["I", "II", "III"]


def test_errors_are_measured_at_every_epoch_at_first() -> None:
    steps = error_steps(10, 4000)
    assert {0, 10, 20, 500, 4000} <= steps
    assert max(np.diff(sorted(steps))) <= 0.03 * 4000
    assert spectrum_steps(0, 10, 100) == []
    assert spectrum_steps(3, 160, 8000) == [80, 800, 8000]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few images of noise in the files that MNIST comes in, and in folders as CIFAR-10 is taken from."""
    pytest.importorskip("torchvision", reason="MNIST and folders of images are read by torchvision")
    generator = np.random.default_rng(0)
    found = {name: tmp_path_factory.mktemp(name) for name in ("mnist", "cifar10")}
    raw = found["mnist"] / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 8), ("t10k", 4)):
        labels = np.tile(np.arange(10, dtype=np.uint8), count)
        images = generator.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = np.array([0x800 + values.ndim, *values.shape], dtype=">i4").tobytes()
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
        for number, label in enumerate(labels):
            folder = found["cifar10"] / ("train" if part == "train" else "test") / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_every_figure_is_made_of_every_data_set(roots: dict[str, Path], dataset: str, tmp_path: Path) -> None:
    plan = replace(
        TINY, dataset=dataset, data_root=str(roots[dataset]), seeds=(0,), noise_rates=(0.5,), per_class=6, epochs=3
    )
    done = {each.figure.name: each for each in reproduce(NAMES, plan, tmp_path / "out")}
    assert list(done) == NAMES
    for each in done.values():
        assert each.rows
        assert each.picture.stat().st_size > 10_000
        assert data_of(tmp_path / "out", each.figure.name)
    inputs = {"mnist": 784, "cifar10": 3072}[dataset]
    with np.load(next((tmp_path / "out" / "runs").glob("samples-*.npz"))) as kept:
        assert kept["train_inputs"].reshape(60, -1).shape[1] == inputs


@pytest.mark.slow
def test_fig1_on_mnist(tmp_path: Path) -> None:
    mnist_root = Path(os.environ.get("SGDKERN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist4k"
    if not mnist_root.exists():
        pytest.skip(f"MNIST is not under {mnist_root}: set SGDKERN_DATA to the folder that holds mnist4k")
    code, printed, told = call("fig1", "--data-root", mnist_root, "--seeds", 0, "--out", tmp_path / "out", "--json")
    assert code == 0, told
    table = {row["quantity"]: row for row in json.loads(printed)["fig1"]["table"]}
    for name in ("R", "training error"):  # within what one seed varies by
        here, reference = (float(table[f"{name}, epoch 1"][column]) for column in ("here", "another implementation"))
        assert here == pytest.approx(reference, rel=0.35)
