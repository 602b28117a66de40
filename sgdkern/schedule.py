"""When to measure: steps evenly spaced on a logarithmic axis, on which the phases of a run are of comparable length."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TypeAlias

# What a user may give as `every`: nothing (log-spaced), an interval, the steps themselves, or a function of the step.
Every: TypeAlias = "int | Collection[int] | Callable[[int], bool] | None"

# 16 measurements a decade resolve a change of phase to within ± 7 % of its step, and make 80 measurements in 100,000
# steps.
PER_DECADE = 16


def log_spaced_steps(last: int, *, count: int | None = None, per_decade: int = PER_DECADE, first: int = 1) -> list[int]:
    """Steps 0, first … last, evenly spaced in the logarithm as far as whole numbers allow.

    Args:
        last: The last step, which is always among them.
        count: About how many between first and last; overrides ``per_decade``. Fewer come back where steps coincide.
        per_decade: How many for each factor of ten.
        first: The first step after 0.

    Returns:
        Increasing steps, beginning with 0.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> log_spaced_steps(1000, per_decade=2)
        [0, 1, 3, 10, 32, 100, 316, 1000]
    """
    if last < 0 or first < 1 or per_decade < 1 or (count is not None and count < 1):
        raise ValueError(
            "log_spaced_steps: last must be at least 0, first, per_decade and count at least 1, "
            f"got last={last}, first={first}, per_decade={per_decade}, count={count}."
        )
    if last <= first:
        return sorted({0, last})
    if count is None:
        decades = math.log10(last / first)
        grid = {round(first * 10 ** (index / per_decade)) for index in range(math.floor(decades * per_decade) + 1)}
    else:
        grid = {round(first * (last / first) ** (index / max(count - 1, 1))) for index in range(count)}
    return sorted({0, last} | grid)


def schedule(every: Every) -> Callable[[int], bool]:
    """Turn what a user may give as ``every`` into the question whether a step is due.

    Args:
        every: None for 16 steps a decade, an interval, a collection of steps, or a function of the step.

    Returns:
        Step → whether to measure there.

    Raises:
        ValueError: If an interval is below 1.
        TypeError: If ``every`` is something else.

    Example:
        >>> due = schedule(None)
        >>> [step for step in range(12) if due(step)]
        [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    """
    if every is None:
        return _is_log_spaced
    if isinstance(every, int):
        if every < 1:
            raise ValueError(f"schedule: every must be at least 1 step, got {every}.")
        return lambda step: step % every == 0
    if isinstance(every, Collection):
        steps = frozenset(int(step) for step in every)
        return lambda step: step in steps
    if callable(every):
        return every
    raise TypeError(
        f"schedule: every must be None, a number, steps or a function of the step, got {type(every).__name__}."
    )


def _is_log_spaced(step: int) -> bool:
    """Whether the step is 0 or the rounding of 10^(k / 16) for a whole k."""
    if step < 1:
        return step == 0
    nearest = round(PER_DECADE * math.log10(step))
    return any(round(10 ** (index / PER_DECADE)) == step for index in (nearest - 1, nearest, nearest + 1))
