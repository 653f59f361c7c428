"""Files that are there complete or as they were, whenever the process dies: written beside, then renamed. No torch.

A folder of several files that belong together is `atomic_folders.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTIAL = ".tmp"  # what the name of a file ends with while it is written


@contextmanager
def replacing(file: Path, beside: Path | None = None, binary: bool = False) -> Iterator[IO[Any]]:
    """A stream of text (UTF-8) or bytes to a new file that takes the name `file` at the end of the block, once its
    content is on the disk. After an error nothing is left of it, and what was there before still is.

    beside: its path meanwhile, in the same folder; else NAME.tmp. That name must be the caller's alone, for what a
    crash left under it is overwritten. Raises OSError.
    """
    part = beside or file.with_name(file.name + PARTIAL)
    try:
        with part.open("wb" if binary else "w", encoding=None if binary else "utf-8") as stream:
            yield stream
            sync_file(stream)
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_complete(file: Path, text: str) -> None:
    """`text` in the place of what `file` holds; on return the new name is on the disk too. Raises OSError."""
    with replacing(file) as stream:
        stream.write(text)
    sync_folder(file.parent)


def sync_file(file: IO[Any]) -> None:
    """What was written, to the disk and not only to the system's memory."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The folder's names, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
