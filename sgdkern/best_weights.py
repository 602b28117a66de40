"""BestWeights: weights at the records of a run, thinned out, of which one is kept when it is known which."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from sgdkern.atomic import replacing


class BestWeights:
    """Keeps a model's weights at records on the disk until it is known which of them are wanted.

    That they were the best is known only later, so that all weights since then are candidates. At most `keep` of them
    are held, in a folder beside `path`, and none in memory. When there is one too many, the one goes whose neighbours
    are closest to each other in log-time; so no two neighbours of the last s steps are farther apart than a factor
    (s + 1)^(2 / (keep − 1)), or than two records were, and no record is farther than the root of that from one held.

    What is held depends on the steps only, never on when the process was stopped: a run that goes on after a kill
    passes the steps of its history again, without the model, and ends up with the same bytes.

    Args:
        path: Where the wanted weights go.
        keep: How many candidates to hold, at least 3.

    Attributes:
        steps: Steps of the candidates, ascending.

    Raises:
        ValueError: If fewer than 3 are to be held.
    """

    def __init__(self, path: Path, *, keep: int = 32) -> None:
        if keep < 3:
            raise ValueError(f"BestWeights: keep must be at least 3 candidates, got {keep}. Eight and more are useful.")
        self.path = path
        self.steps: list[int] = []
        self._keep = keep
        self._folder = path.with_name(path.name + ".candidates")

    def add(self, step: int, model: nn.Module | None) -> None:
        """Hold the weights of a further step, and let go of the one that is missed least.

        Args:
            step: Larger than the last one.
            model: The model as it is at that step; None where its weights were saved already.
        """
        if model is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(step)) as file:
                torch.save(_weights(model), file)
        self.steps.append(step)
        if len(self.steps) > self._keep:
            clock = [math.log1p(step) for step in self.steps]
            gaps = [after - before for before, after in zip(clock[:-2], clock[2:], strict=True)]
            self._drop([self.steps[1 + gaps.index(min(gaps))]])

    def drop_before(self, step: int) -> None:
        """Let go of all that lie before a step.

        Args:
            step: The step.
        """
        self._drop([candidate for candidate in self.steps[:-1] if candidate < step])

    def take(self, step: float) -> int | None:
        """Put the candidate nearest to a step, in the ratio of steps, in its place, and let go of the others.

        Args:
            step: The wanted step.

        Returns:
            The candidate's step; None where there is none.
        """
        by_distance = sorted(self.steps, key=lambda candidate: abs(math.log((candidate + 1) / (step + 1))))
        if by_distance and not self._file(by_distance[0]).exists() and self.path.exists():
            found = by_distance[0]  # taken already, by a process that was killed soon after
        else:
            found = next((candidate for candidate in by_distance if self._file(candidate).exists()), -1)
            if found < 0:
                return None
            with self._file(found).open("rb") as held, replacing(self.path) as file:
                shutil.copyfileobj(held, file)
        self.clear()
        return found

    def clear(self) -> None:
        """Let go of all candidates."""
        self.steps = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _drop(self, steps: list[int]) -> None:
        for step in steps:
            self.steps.remove(step)
            self._file(step).unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        return self._folder / f"{step}.pt"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU: what `load_state_dict` takes back."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
