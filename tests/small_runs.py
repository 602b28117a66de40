"""Short runs of the main job that its tests share."""

from contextlib import suppress
from pathlib import Path

import pytest

from sgdkern import run as run_module
from sgdkern.run import run
from sgdkern.run_config import RunConfig

SMALL = RunConfig(
    train_samples=120, test_samples=60, hidden=(8, 8), epochs=12, measurements=14, spectrum_every=4, momentum=0.5
)


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write their real report in ``finished`` only: drawing takes longer than the run."""

    def touch(folder: Path, **options: object) -> Path:
        (folder / "report.html").touch()
        return folder / "report.html"

    monkeypatch.setattr(run_module, "write_report", touch)


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


def run_through_kills(config: RunConfig, folder: Path) -> int:
    """Run, and go on after each kill until the report is there; how often that began."""
    starts = 0
    while not (folder / "report.html").exists():
        with suppress(Killed):
            run(config, folder, resume=(folder / "config.json").exists())
        starts += 1
    return starts
