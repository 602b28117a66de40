"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place only after everything written inside is on the disk.

    Args:
        path: Its place; a file that is there already stays until the new one is complete.

    Yields:
        The file to write to.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON: numbers that are not finite become null.

    Args:
        path: Where to.
        content: Mappings, sequences, text and numbers.
    """
    with replacing(path) as file:
        file.write(strict_json(content).encode())


def strict_json(content: Mapping[str, Any]) -> str:
    """The content as strict JSON, one document with a newline at its end.

    Args:
        content: Mappings, sequences, text and numbers; numbers that are not finite become null.

    Returns:
        The text.
    """
    return json.dumps(_strict(content), allow_nan=False, indent=2, ensure_ascii=False) + "\n"


def _strict(value: Any) -> Any:
    """The value with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
