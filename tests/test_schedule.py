"""When to measure."""

import math

import pytest

from sgdkern.schedule import PER_DECADE, log_spaced_steps, schedule


@pytest.mark.parametrize("last", [0, 1, 2, 17, 1000, 32_400])
@pytest.mark.parametrize("options", [{}, {"count": 40}, {"per_decade": 5}, {"first": 6, "count": 40}])
def test_steps_increase_from_zero_to_the_last(last: int, options: dict[str, int]) -> None:
    steps = log_spaced_steps(last, **options)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, last)
    assert all(0 <= step <= last for step in steps)


def test_ratios_are_even_where_whole_numbers_allow() -> None:
    steps = [step for step in log_spaced_steps(100_000, count=81) if step > 1000]
    ratios = [math.log10(b / a) for a, b in zip(steps, steps[1:])]
    assert max(ratios) - min(ratios) < 1e-3
    assert sum(ratios) / len(ratios) == pytest.approx(5 / 80, rel=1e-3)


def test_the_default_schedule_is_the_log_spaced_one_whatever_the_end() -> None:
    due = schedule(None)
    expected = {round(10 ** (index / PER_DECADE)) for index in range(5 * PER_DECADE)} | {0}
    assert {step for step in range(50_000) if due(step)} == {step for step in expected if step < 50_000}


def test_other_ways_to_say_when() -> None:
    assert [step for step in range(10) if schedule(4)(step)] == [0, 4, 8]
    assert [step for step in range(10) if schedule([3, 7])(step)] == [3, 7]
    assert [step for step in range(10) if schedule(lambda step: step > 7)(step)] == [8, 9]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        schedule(0)
    with pytest.raises(TypeError, match="every must be"):
        schedule(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="log_spaced_steps"):
        log_spaced_steps(-1)
