"""speaker: errors begin with the name of the function that the user called, whatever was at work behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What errors below begin with as they are written.
WRITTEN = "per_sample_gradients"
_speaker: ContextVar[str | None] = ContextVar("speaker", default=None)


def speaker() -> str:
    """The function that the user called."""
    return _speaker.get() or WRITTEN


@contextmanager
def speaking_as(name: str) -> Iterator[None]:
    """Errors and warnings from inside begin with the name of what the user called: of several, the outermost."""
    token = _speaker.set(_speaker.get() or name)
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        text = str(error)
        if text.startswith(f"{WRITTEN}:"):
            error.args = (speaker() + text.removeprefix(WRITTEN),)
        raise
    finally:
        _speaker.reset(token)
