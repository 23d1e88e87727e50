"""The .dlc file: the same members give the same bytes, and no byte can change unnoticed."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from dlc import hardware
from dlc.errors import DlcError
from dlc.package import FORMAT, MANIFEST, Package, open_constants, read_manifest, safetensors_bytes


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "weights": rng.standard_normal((3, 5)).astype(np.float32),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 4), np.float32),
        "half": np.arange(9).astype(ml_dtypes.bfloat16),
        "nibbles": np.arange(-8, 8).astype(ml_dtypes.int4),
        "flags": np.array([True, False]),
    }


def package(**manifest: object) -> Package:
    members = {"code/kernel.o": b"not really code", "constants.safetensors": safetensors_bytes(constants())}
    base = {"target": "none", "runtime": "none", "inputs": [], "outputs": []}
    return Package.create({**base, **manifest}, members)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.dlc"
    package().save(path)
    return path


def test_members_come_back(saved: Path) -> None:
    opened = Package.open(saved)
    assert opened.members == ["code/kernel.o", "constants.safetensors"]
    assert opened.manifest == package().manifest == read_manifest(saved)
    assert opened.manifest["format"] == FORMAT
    assert bytes(opened.member("code/kernel.o")) == b"not really code"
    with pytest.raises(DlcError, match=r"model\.dlc: member 'no' is missing"):
        opened.member("no")
    with pytest.raises(DlcError, match=r"member 'code/kernel\.o' is not JSON"):
        opened.json("code/kernel.o")


@pytest.mark.parametrize("mapped", [True, False])
def test_constants_are_aligned_and_exact(saved: Path, mapped: bool) -> None:
    source = Package.open(saved) if mapped else package()
    found = source.constants("constants.safetensors")
    for name, array in constants().items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable
        assert found[name].size == 0 or found[name].ctypes.data % 64 == 0
    assert set(found) == set(constants())


def test_constants_lie_where_the_file_is_mapped(saved: Path) -> None:
    opened = Package.open(saved)
    start = np.frombuffer(opened.member("constants.safetensors"), np.uint8).ctypes.data
    array = opened.constants("constants.safetensors")["weights"]
    assert start % 64 == 0
    assert start < array.ctypes.data < start + len(opened.member("constants.safetensors"))


def test_other_tools_read_the_package(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == MANIFEST
        tensors = dict(safetensors.deserialize(archive.read("constants.safetensors")))
    assert tensors["half"]["dtype"] == "BF16" and tensors["weights"]["shape"] == [3, 5]
    assert bytes(tensors["weights"]["data"]) == constants()["weights"].tobytes()


def test_bad_constants() -> None:
    with pytest.raises(DlcError, match="here: not a safetensors file"):
        open_constants(b"nonsense that is long enough", "here")
    with pytest.raises(ValueError, match="dtype"):
        safetensors_bytes({"x": np.array(["text"])})
    with pytest.raises(ValueError, match=r"pad\.0"):
        safetensors_bytes({"pad.0": np.zeros(1)})


def test_same_members_same_bytes(tmp_path: Path) -> None:
    package(notes={"b": 1, "a": 2}).save(tmp_path / "first.dlc")
    package(notes={"a": 2, "b": 1}).save(tmp_path / "second.dlc")
    first = (tmp_path / "first.dlc").read_bytes()
    assert first == (tmp_path / "second.dlc").read_bytes()
    Package.open(tmp_path / "first.dlc").save(tmp_path / "third.dlc")
    assert first == (tmp_path / "third.dlc").read_bytes()
    assert str(tmp_path).encode() not in first


def test_every_byte_is_checked(saved: Path, tmp_path: Path) -> None:
    original = saved.read_bytes()
    altered = tmp_path / "altered.dlc"
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1 << position % 8
        altered.write_bytes(data)
        with pytest.raises(DlcError, match=r"altered\.dlc: "):
            Package.open(altered)


def test_altered_member_is_named(saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data.replace(b"not really code", b"not really Code"))
    with pytest.raises(DlcError, match=r"model\.dlc: member 'code/kernel\.o' was altered: it does not match its hash"):
        Package.open(saved)


def test_altered_manifest_is_named(saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data.replace(b'"target": "none"', b'"target": "nine"'))
    with pytest.raises(DlcError, match=r"model\.dlc: the package was altered: its manifest or its zip headers"):
        Package.open(saved)


def test_truncated(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(1, len(data), 97):
        saved.write_bytes(data[:length])
        with pytest.raises(DlcError, match=r"model\.dlc: the package (is truncated or )?was altered|not a dlc package"):
            Package.open(saved)
    saved.write_bytes(data + b"x")
    with pytest.raises(DlcError, match=r"model\.dlc: "):
        Package.open(saved)


def rewritten(path: Path, manifest: dict[str, object] | bytes | None, drop: str = "") -> None:
    """The package again by ordinary zip tools, with its manifest changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != drop}
        comment = archive.comment
    if manifest is None:
        del members[MANIFEST]
    else:
        members[MANIFEST] = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ({"format": FORMAT + 1}, f"package format {FORMAT + 1} is newer than {FORMAT}, .*: update dlc"),
        ({"format": "next"}, "package format next is newer"),
        ({"format": FORMAT - 1}, f"package format {FORMAT - 1} is older than {FORMAT}: compile the model again"),
        ({"format": FORMAT}, "member 'manifest.json' was altered: it lists no members"),
        ({}, "member 'manifest.json' was altered: it is not a manifest"),
        (b"{", "member 'manifest.json' was altered: it is not a manifest"),
        (None, "not a dlc package: member 'manifest.json' is missing"),
    ],
)
def test_bad_manifest(saved: Path, manifest: dict[str, object] | bytes | None, text: str) -> None:
    rewritten(saved, manifest)
    with pytest.raises(DlcError, match=rf"model\.dlc: {text}"):
        Package.open(saved)


def test_members_with_the_same_content_are_stored_once(tmp_path: Path) -> None:
    path, data = tmp_path / "model.dlc", safetensors_bytes(constants())
    Package.create({}, {"a/c": data, "b/c": data, "b/d": b"", "e": b""}).save(path)
    assert zipfile.ZipFile(path).namelist() == [MANIFEST, "a/c", "b/d"]
    opened = Package.open(path)
    assert opened.members == ["a/c", "b/c", "b/d", "e"]
    places = {opened.constants(f"{folder}/c")["weights"].ctypes.data for folder in "ab"}
    assert len(places) == 1 and bytes(opened.member("e")) == b""
    opened.save(tmp_path / "again.dlc")
    assert (tmp_path / "again.dlc").read_bytes() == path.read_bytes()


def test_missing_member(saved: Path) -> None:
    rewritten(saved, read_manifest(saved), drop="code/kernel.o")
    with pytest.raises(DlcError, match=r"model\.dlc: the package was altered"):
        Package.open(saved)
    file = io.BytesIO(saved.read_bytes())
    assert "code/kernel.o" not in zipfile.ZipFile(file).namelist()


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "not a dlc package: the file is empty"), (b"some text", "not a dlc package"), (b"PK\x03\x04", "truncated")],
)
def test_not_a_package(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "odd.dlc"
    path.write_bytes(content)
    with pytest.raises(DlcError, match=rf"odd\.dlc: .*{text}"):
        Package.open(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match=r"cannot read .*none\.dlc: No such file"):
        Package.open(tmp_path / "none.dlc")
    with pytest.raises(DlcError, match=r"cannot read .*: Is a directory"):
        Package.open(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match=r"cannot write .*model\.dlc: there is no folder"):
        package().save(tmp_path / "none" / "model.dlc")
    with pytest.raises(DlcError, match=r"cannot write .*: it is a folder"):
        package().save(tmp_path)
    with pytest.raises(DlcError, match=r"cannot write /dev/null: it is not a regular file"):
        package().save("/dev/null")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DlcError, match=r"cannot write .*: no permission"):
        package().save(tmp_path / "model.dlc")


def test_nothing_half_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlc.package._add", full)
    with pytest.raises(DlcError, match=r"cannot write .*model\.dlc: No space left on device"):
        package(notes="other").save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_mode_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "real.dlc", tmp_path / "link.dlc"
    package().save(target)
    link.symlink_to(target)
    package(notes="new").save(link)
    assert link.is_symlink() and Package.open(target).manifest["notes"] == "new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


# --- the machine -----------------------------------------------------------------------------------------------------

VARIANTS = [
    {"name": "amx", "arch": "x86_64", "requires": ["amx_int8", "avx512f"], "members": []},
    {"name": "avx2", "arch": "x86_64", "requires": ["avx2", "fma"], "members": []},
]


def machine(monkeypatch: pytest.MonkeyPatch, arch: str, *features: str) -> None:
    made = hardware.Machine(arch, "made up", frozenset(features), 1, 1, 1, 1)
    monkeypatch.setattr(hardware, "this_machine", lambda: made)


def test_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    made = package(variants=VARIANTS)
    machine(monkeypatch, "x86_64", "avx2", "fma", "avx512f")
    assert made.variant() == VARIANTS[1]
    machine(monkeypatch, "x86_64", "avx2", "fma", "avx512f", "amx_int8")
    assert made.variant() == VARIANTS[0]
    assert package().variant() is None


def test_missing_features(monkeypatch: pytest.MonkeyPatch) -> None:
    made = package(variants=VARIANTS)
    machine(monkeypatch, "x86_64", "avx512f")
    with pytest.raises(DlcError, match=r"CPU lacks features that the package needs: amx_int8 \(variant amx\)"):
        made.variant()
    machine(monkeypatch, "x86_64", "avx2", "sse2")
    with pytest.raises(DlcError, match=r"CPU lacks features that the package needs: fma \(variant avx2\)"):
        made.variant()
    machine(monkeypatch, "aarch64", "neon")
    with pytest.raises(DlcError, match="the package is for x86_64 processors, and this machine is aarch64"):
        made.variant()
