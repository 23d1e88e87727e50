"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dlc.errors import DlcError


def _cannot_write(path: Path, reason: object) -> DlcError:
    return DlcError(f"cannot write {path}: {reason}")


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Say early that `path` cannot be written, before work is spent on it; returns it as a Path, links resolved.

    Raises:
        DlcError: the folder is missing, may not be written, or `path` is there and not a regular file.
    """
    given = Path(path)
    real = given.resolve()
    if real.is_dir():
        raise _cannot_write(given, "it is a folder")
    if real.exists() and not real.is_file():
        raise _cannot_write(given, "it is not a regular file")
    if not real.parent.is_dir():
        raise _cannot_write(given, f"there is no folder {given.parent}")
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise _cannot_write(given, f"no permission to write in {given.parent}")
    return real


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` when the block ends without an exception, and leaves no trace otherwise.

    Raises:
        DlcError: `path` cannot be written, or the disk is full.
    """
    real = check_writable(path)
    temporary = real.with_name(f".{real.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        # Not tempfile: its files are private whatever the umask, and this one becomes the user's.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise _cannot_write(Path(path), error.strerror or error) from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
        temporary.replace(real)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(Path(path), error.strerror or error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
