"""The four kinds of text, each from a package, as one string of plain prose."""

from __future__ import annotations

import gzip
import html
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dlc.errors import DlcError
from dlc.zoo.ngram import data as brown
from dlc.zoo.packages import DataPackage, locate

_MODULE = "usr/share/sword/modules/texts/ztext/engWEB2015eb"
_AUSTEN = DataPackage("debian", "r-cran-janeaustenr", "usr/lib/R/site-library/janeaustenr/data", ("Rdata.rdb",))
_BIBLE = DataPackage("debian", "sword-text-web", _MODULE, ("ot.bzs", "ot.bzz", "nt.bzs", "nt.bzz"))
_LINUX = DataPackage(
    "debian", "linux-doc-6.1", "usr/share/doc/linux-doc-6.1/Documentation", ("process/howto.rst.gz",)
)  # fmt: skip
PACKAGES = (brown.PACKAGES[0], _AUSTEN, _BIBLE, _LINUX)

#: Folders of the kernel's documentation that are taken, in this order.
_LINUX_FOLDERS = (
    "admin-guide", "networking", "driver-api", "userspace-api", "filesystems", "trace", "virt", "process", "core-api",
    "RCU", "sound", "scsi", "dev-tools", "power", "mm", "locking", "security", "scheduler", "PCI", "usb", "block",
    "kbuild", "crypto", "gpu", "x86", "input", "bpf",
)  # fmt: skip
_R_STRINGS, _R_STRING = 16, 9  # the types of a vector of strings and of a string in R's serialisation


def read_brown(directory: Path | None = None) -> str:
    """The Brown corpus, without tags.

    Like its neighbours: DlcError where the package is missing or is not what it was.
    """
    corpus = brown.load_tokens(directory)
    return " ".join(corpus).replace("``", '"').replace("''", '"')


def read_austen(directory: Path | None = None) -> str:
    """Six novels of Jane Austen, from R's lazily loaded data: blocks of a length and zlib, a vector of lines each."""
    path = locate(_AUSTEN, "moe", directory) / "Rdata.rdb"
    rest, lines = path.read_bytes(), list[str]()
    while rest:
        stream = zlib.decompressobj()
        try:
            lines += _r_strings(stream.decompress(rest[4:]))
        except (zlib.error, struct.error, UnicodeDecodeError) as error:
            raise DlcError(f"{path} does not hold R's vectors of strings: {error}") from error
        rest = stream.unused_data
    return "\n".join(lines)


def _r_strings(content: bytes) -> Iterator[str]:
    """The strings of one serialised vector (format 3, big-endian)."""
    (encoding,) = struct.unpack_from(">i", content, 14)
    kind, count = struct.unpack_from(">ii", content, 18 + encoding)
    if kind & 0xFF != _R_STRINGS:
        raise struct.error(f"type {kind & 0xFF} where a vector of strings was expected")
    at = 26 + encoding
    for _ in range(count):
        kind, length = struct.unpack_from(">ii", content, at)
        if kind & 0xFF != _R_STRING:
            raise struct.error(f"type {kind & 0xFF} where a string was expected")
        yield content[at + 8 : at + 8 + length].decode()
        at += 8 + length


def read_bible(directory: Path | None = None) -> str:
    """The World English Bible, from SWORD's compressed blocks, without notes and titles."""
    folder = locate(_BIBLE, "moe", directory)
    return " ".join(_osis(_sword(folder, testament)) for testament in ("ot", "nt"))


def _sword(folder: Path, testament: str) -> str:
    """The blocks that the index, triples of place, length and unpacked length, names."""
    index, packed = ((folder / f"{testament}.{kind}").read_bytes() for kind in ("bzs", "bzz"))
    try:
        places = struct.iter_unpack("<III", index)
        return b"".join(zlib.decompress(packed[at : at + size]) for at, size, _ in places).decode()
    except (zlib.error, struct.error, UnicodeDecodeError) as error:
        raise DlcError(f"{folder}/{testament}.bzz does not hold SWORD's compressed text: {error}") from error


def _osis(text: str) -> str:
    text = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def read_linux(directory: Path | None = None) -> str:
    """The prose of some folders of the kernel's documentation: paragraphs whose lines all begin with a letter."""
    folder = locate(_LINUX, "moe", directory)
    paths = [path for name in _LINUX_FOLDERS for path in sorted((folder / name).rglob("*.rst.gz"))]
    found = []
    for path in paths:
        try:
            text = gzip.decompress(path.read_bytes()).decode(errors="replace")
        except (OSError, EOFError, zlib.error) as error:
            raise DlcError(f"cannot read {path}: {error}") from error
        found += [p for p in text.split("\n\n") if _is_prose(p)]
    return "\n".join(found)


def _is_prose(paragraph: str) -> bool:
    lines = paragraph.strip("\n").splitlines()
    return len(lines) > 1 and all(line[:1].isalpha() for line in lines)


#: The kinds of text by name.
READERS: dict[str, Callable[[Path | None], str]] = {
    "brown": read_brown,
    "austen": read_austen,
    "bible": read_bible,
    "linux": read_linux,
}
