"""The package: one .dlc file, a zip that is read in place and in which no byte can change unnoticed.

``manifest.json`` comes first and holds the format version, the target and its runtime module, inputs and outputs, what
the CPU must have, the options, and the sha256 of every other member. Members are stored uncompressed at multiples of 64
bytes, so that constants are used where the file is mapped; of members with the same content the first is stored, and
the others are found by their sha256. The archive's comment holds the sha256 of everything that is
not a member's content (the manifest and the zip's own headers). The same members give the same bytes.

A hash is not a signature: a package is native code, so load only what you trust.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import platform
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from dlc.errors import DlcError
from dlc.runtime.files import atomic_write
from dlc.runtime.tensors import ALIGNMENT, open_constants, safetensors_bytes

__all__ = ["FORMAT", "MANIFEST", "Package", "open_constants", "read_manifest", "safetensors_bytes"]

FORMAT = 3
MANIFEST = "manifest.json"
LEVEL = "DLC_LEVEL"
LEVELS = "dlc.levels"  # the runtime of a package that holds one for each level of a machine
_SEAL = b"dlc sha256:"
_SEAL_LENGTH = len(_SEAL) + 64
_LOCAL_HEADER = 30
_ZIP64_EXTRA = 20  # what zipfile appends to the local header of a member near 2 GiB
_EXTRA_ID = 0xD935  # the extra field that Android's zipalign pads with
_ZIP_START = b"PK\x03\x04"

_log = logging.getLogger("dlc")


@dataclass(frozen=True)
class _Entry:
    """Where a member's content lies in the file."""

    begin: int
    end: int


class Package:
    """A compiled model: a manifest and members, in memory or mapped from a file.

    Attributes:
        manifest: what ``manifest.json`` says.
        name: the file's path, or `UNNAMED`; for messages.
    """

    UNNAMED: ClassVar[str] = "<package>"

    def __init__(self, manifest: Mapping[str, Any], members: Mapping[str, memoryview], name: str = UNNAMED) -> None:
        self.manifest: dict[str, Any] = dict(manifest)
        self.name = name
        self._members = dict(members)

    @classmethod
    def create(cls, manifest: Mapping[str, Any], members: Mapping[str, bytes | memoryview]) -> Package:
        """A package of `members`; format version and hashes are added to the manifest, which must be JSON-able."""
        views = {name: memoryview(data).cast("B").toreadonly() for name, data in sorted(members.items())}
        if MANIFEST in views or any(not n or n.startswith("/") or ".." in n or "\\" in n for n in views):
            raise ValueError(f"bad member names: {sorted(views)}")
        table = {name: {"sha256": hashlib.sha256(v).hexdigest(), "size": len(v)} for name, v in views.items()}
        whole = {**manifest, "format": FORMAT, "members": table}
        return cls(json.loads(_manifest_bytes(whole)), views)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Package:
        """Map the file at `path` and check every byte of it.

        Raises:
            DlcError: no such file, not a package, truncated or altered, or of a newer format; names file and member.
        """
        data = _map(path)
        manifest, entries = _read(data, str(path))
        _check_seal(data, entries, str(path))
        stored = {name: data[entry.begin : entry.end] for name, entry in entries.items() if name != MANIFEST}
        return cls(manifest, _checked_members(manifest["members"], stored, str(path)), str(path))

    @property
    def members(self) -> list[str]:
        """The names of the members, sorted; the manifest is not one of them."""
        return sorted(self._members)

    def member(self, name: str) -> memoryview:
        """A member's bytes, without a copy; DlcError where there is no such member."""
        try:
            return self._members[name]
        except KeyError:
            raise DlcError(f"{self.name}: member '{name}' is missing") from None

    def json(self, name: str) -> Any:
        """A member parsed as JSON; DlcError where it is not."""
        try:
            return json.loads(bytes(self.member(name)))
        except ValueError as error:
            raise DlcError(f"{self.name}: member '{name}' is not JSON: {error}") from error

    def constants(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of a safetensors member: read-only, 64-byte aligned, without a copy where the file is mapped."""
        return open_constants(self.member(name), f"{self.name}: member '{name}'")

    def nested_members(self, name: str) -> dict[str, memoryview | bytes]:
        """This package's manifest and members as members of an outer package, under the folder `name`."""
        members = {f"{name}/{member}": data for member, data in self._members.items()}
        return {**members, f"{name}/{MANIFEST}": _manifest_bytes(self.manifest)}

    def with_nested(self, name: str, inner: Package, manifest: Mapping[str, Any]) -> Package:
        """This package with another one in the folder `name`, and more in the manifest."""
        return Package.create({**self.manifest, **manifest}, {**self._members, **inner.nested_members(name)})

    def nested(self, name: str) -> Package:
        """The package that lies in the folder `name` of this one; DlcError where there is none."""
        manifest = self.json(f"{name}/{MANIFEST}")
        inside = {m.removeprefix(f"{name}/"): data for m, data in self._members.items() if m.startswith(f"{name}/")}
        return Package(manifest, {m: data for m, data in inside.items() if m != MANIFEST}, f"{self.name}: {name}")

    def variant(self) -> dict[str, Any] | None:
        """The best variant that this machine can run; None when the package has none because any machine will do.

        Of several, the environment variable ``DLC_LEVEL`` names the one to take.

        Raises:
            DlcError: the machine lacks CPU features that every variant needs, or the one that is named; names them. Or
                there is none of that name.
        """
        variants: list[dict[str, Any]] = self.manifest.get("variants") or []
        if not variants:
            return None
        named = os.environ.get(LEVEL)
        if named and len(variants) > 1:
            names = ", ".join(v["name"] for v in variants)
            variants = [v for v in variants if v["name"] == named]
            if not variants:
                raise DlcError(f"{self.name}: {LEVEL} is {named}, and the package has code for {names}")
        # Read only now: a package for any machine loads where the machine cannot be described.
        from dlc.hardware import this_machine

        machine = this_machine()
        for variant in variants:
            if variant["arch"] in ("", machine.arch) and set(variant["requires"]) <= machine.features:
                return variant
        raise DlcError(f"{self.name}: {_lacking(variants, machine.arch, machine.features)}")

    def levels(self) -> list[str]:
        """The folders in which packages for levels of a machine lie, best first; none where there is one code only."""
        return [v["name"] for v in self.manifest["variants"]] if self.manifest.get("runtime") == LEVELS else []

    def chosen(self) -> Package:
        """What this machine runs of the package: itself, or the best level of those that lie in it (`dlc.levels`).

        Raises:
            DlcError: as `variant`.
        """
        variant = self.variant()
        if variant is None or variant["name"] not in self.levels():
            return self
        _log.info("%s: level %s", self.name, variant["name"])
        return self.nested(variant["name"])

    def write(self, file: BinaryIO) -> None:
        """Write the package to a binary file that can be read back (opened with ``w+b``)."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, MANIFEST, _manifest_bytes(self.manifest), file.tell())
            table = self.manifest["members"]
            first = {table[name]["sha256"]: name for name in reversed(self.members)}
            for name in sorted(first.values()):
                _add(archive, name, self._members[name], file.tell())
            archive.comment = _SEAL + b"0" * 64
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                seal = _skeleton_hash(view, _entries(view))
            finally:
                view.release()
        file.seek(-64, os.SEEK_END)
        file.write(seal)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the package to `path`, whole or not at all.

        Raises:
            DlcError: `path` cannot be written.
        """
        with atomic_write(path) as file:
            self.write(file)


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the package at `path`, without checking the members or loading any code.

    Raises:
        DlcError: no such file, not a package, or of a newer format.
    """
    return _read(_map(path), str(path))[0]


# --- writing ---------------------------------------------------------------------------------------------------------


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview, position: int) -> None:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o100644 << 16  # as on Unix, wherever it is written
    zip64 = _ZIP64_EXTRA if len(data) * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile's own rule
    gap = -(position + _LOCAL_HEADER + len(name.encode()) + 4 + zip64) % ALIGNMENT
    info.extra = struct.pack("<HH", _EXTRA_ID, gap) + bytes(gap)
    info.file_size = len(data)
    with archive.open(info, "w") as member:
        member.write(data)


# --- reading ---------------------------------------------------------------------------------------------------------


def _map(path: str | os.PathLike[str]) -> memoryview:
    try:
        with Path(path).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DlcError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise DlcError(f"{path}: not a dlc package: the file is empty") from None


def _entries(data: memoryview) -> dict[str, _Entry]:
    """Each member's place, from the central directory and the local headers; raises what zipfile raises."""
    with zipfile.ZipFile(_Reader(data)) as archive:
        infos = archive.infolist()
        names = {info.filename for info in infos}
        if len(names) != len(infos) or any(i.compress_type != zipfile.ZIP_STORED for i in infos):
            raise zipfile.BadZipFile("a member is compressed or there twice")
    entries = {}
    for info in infos:
        start = info.header_offset
        if bytes(data[start : start + 4]) != _ZIP_START:
            raise zipfile.BadZipFile(f"bad header of member '{info.filename}'")
        name_length, extra_length = struct.unpack_from("<HH", data, start + 26)
        begin = start + _LOCAL_HEADER + name_length + extra_length
        if begin + info.file_size > len(data):
            raise zipfile.BadZipFile(f"member '{info.filename}' ends behind the file")
        entries[info.filename] = _Entry(begin, begin + info.file_size)
    return entries


class _Reader:
    """The mapped file as zipfile wants it, without a copy of the whole."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._data))[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._position + size
        chunk = bytes(self._data[self._position : end])
        self._position += len(chunk)
        return chunk


def _read(data: memoryview, path: str) -> tuple[dict[str, Any], dict[str, _Entry]]:
    try:
        entries = _entries(data)
    except Exception as error:  # zipfile raises half a dozen types on damaged archives
        if bytes(data[:4]) != _ZIP_START:
            raise DlcError(f"{path}: not a dlc package") from None
        raise DlcError(f"{path}: the package is truncated or was altered: {error}") from error
    if MANIFEST not in entries:
        raise DlcError(f"{path}: not a dlc package: member '{MANIFEST}' is missing")
    entry = entries[MANIFEST]
    try:
        manifest = json.loads(bytes(data[entry.begin : entry.end]))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise DlcError(f"{path}: member '{MANIFEST}' was altered: it is not a manifest") from None
    if not isinstance(version, int) or version > FORMAT:
        text = f"package format {version} is newer than {FORMAT}, the newest that this dlc reads: update dlc"
        raise DlcError(f"{path}: {text}")
    if version < FORMAT:
        raise DlcError(f"{path}: package format {version} is older than {FORMAT}: compile the model again")
    if not isinstance(manifest.get("members"), dict):
        raise DlcError(f"{path}: member '{MANIFEST}' was altered: it lists no members")
    return manifest, entries


def _skeleton_hash(data: memoryview, entries: Mapping[str, _Entry]) -> bytes:
    """The sha256 of everything but members' content and the seal itself; the manifest is part of it."""
    digest, position = hashlib.sha256(), 0
    for entry in sorted((e for n, e in entries.items() if n != MANIFEST), key=lambda e: e.begin):
        digest.update(data[position : entry.begin])
        position = entry.end
    digest.update(data[position : len(data) - 64])
    return digest.hexdigest().encode()


def _check_seal(data: memoryview, entries: Mapping[str, _Entry], path: str) -> None:
    seal = bytes(data[-_SEAL_LENGTH:])
    if not seal.startswith(_SEAL) or seal[len(_SEAL) :] != _skeleton_hash(data, entries):
        raise DlcError(f"{path}: the package was altered: its manifest or its zip headers do not match their hash")


def _checked_members(table: Mapping[str, Any], stored: Mapping[str, memoryview], path: str) -> dict[str, memoryview]:
    """Every member of the table, those too that are stored under another name with the same content."""
    found = {}
    for name, data in sorted(stored.items()):
        if name not in table:
            raise DlcError(f"{path}: member '{name}' is not in the manifest")
        digest = hashlib.sha256(data).hexdigest()
        if digest != table[name].get("sha256"):
            raise DlcError(f"{path}: member '{name}' was altered: it does not match its hash")
        found[digest] = data
    for name, record in table.items():
        if record.get("sha256") not in found:
            raise DlcError(f"{path}: member '{name}' is missing")
    return {name: found[record["sha256"]] for name, record in table.items()}


def _lacking(variants: list[dict[str, Any]], arch: str, features: frozenset[str]) -> str:
    fitting = [v for v in variants if v["arch"] in ("", arch)]
    if not fitting:
        wanted = ", ".join(sorted({v["arch"] for v in variants}))
        return f"the package is for {wanted} processors, and this machine is {arch or platform.machine()}"
    least = min(fitting, key=lambda v: len(set(v["requires"]) - features))
    missing = ", ".join(sorted(set(least["requires"]) - features))
    # Where Linux withholds the tiles, `dlc.hardware` leaves AMX out.
    withheld = ", or Linux withholds them from this process" if "amx" in missing else ""
    return f"this machine's CPU lacks features that the package needs: {missing} (variant {least['name']}){withheld}"
