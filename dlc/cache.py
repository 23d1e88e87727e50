"""The compile cache: finished packages on disk, by a key of everything that decides them (`dlc.cache_key`).

Place: ``packages/`` in the cache directory, which is ``$DLC_CACHE``, else ``$XDG_CACHE_HOME/dlc``, else
``~/.cache/dlc``. ``DLC_CACHE_SIZE`` caps it (bytes, or with K, M or G; 2G by default; 0 turns the cache off): what was
not used for longest goes first.

An entry is a package file called after its key. It appears by a rename, so that other processes see it whole or not at
all; it is checked against its hashes whenever it is used, and one that does not match is removed and compiled again. A
cache that cannot be written costs a warning, never a compilation.

A package is native code: keep the directory where nobody else can write. It is made readable to its owner alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.files import atomic_write

DEFAULT_SIZE = 2 * 10**9
_SIZE = "DLC_CACHE_SIZE"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_ABANDONED_SECONDS = 3600.0  # a temporary file this old is of a process that died
_log = logging.getLogger("dlc")


def cache_dir() -> Path:
    """The folder for compiled packages, downloads and checkpoints. It may not exist yet."""
    given = os.environ.get("DLC_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dlc"


def cache_size() -> int:
    """The cap in bytes, from the environment.

    Raises:
        DlcError: ``DLC_CACHE_SIZE`` is not a size.
    """
    text = os.environ.get(_SIZE, "").strip()
    if not text:
        return DEFAULT_SIZE
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise DlcError(f"{_SIZE}='{text}': expected a number of bytes, perhaps with K, M or G, as in 500M; 0 is off")
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Entry:
    """One package of the cache: its file, its bytes, and when it was last used (seconds since the epoch)."""

    path: Path
    size: int
    used: float


class Cache:
    """The packages below one folder.

    Attributes:
        folder: where the entries lie; made when the first one is stored.
        limit: bytes that the entries may take together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{key}.dlc"

    def find(self, key: str) -> Package | None:
        """The package stored under `key`, every byte checked; None when there is none or it is damaged."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            package = Package.open(path)
        except DlcError as error:
            _log.warning("compile cache: removing a damaged entry: %s", error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # gone meanwhile, or a cache that may only be read
            os.utime(path)
        package.name = Package.UNNAMED
        return package

    def store(self, key: str, package: Package) -> None:
        """Keep `package` under `key`, then remove what is too much; a failure is a warning."""
        size = sum({m["sha256"]: m["size"] for m in package.manifest["members"].values()}.values())
        if size > self.limit:
            _log.info("compile cache: not stored: the package is larger than the cache: %d bytes", size)
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self.path(key)) as file:
                package.write(file)
            self.trim()
        except (DlcError, OSError) as error:
            _log.warning("compile cache: not stored: %s", error)

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        found = []
        for path in self.folder.glob("*.dlc"):
            with contextlib.suppress(OSError):  # another process removed it
                status = path.stat()
                found.append(Entry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (entry.used, entry.path.name))

    def trim(self) -> None:
        """Remove entries, the least recently used first, until the rest fits; and what dead processes left."""
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit:
                break
            _log.info("compile cache: removing %s: the cache is over %d bytes", entry.path.name, self.limit)
            _remove(entry.path)
            total -= entry.size
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def clear(self) -> list[Entry]:
        """Remove every entry; returns what was removed."""
        entries = self.entries()
        for path in [*(entry.path for entry in entries), *self.folder.glob(".*.tmp")]:
            _remove(path)
        return entries


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DlcError(f"cannot remove {path}: {error.strerror or error}") from error


def the_cache() -> Cache:
    """The cache that the environment names; its limit is 0 when it is off."""
    return Cache(cache_dir() / "packages", cache_size())
