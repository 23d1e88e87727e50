"""Fashion-MNIST: the full set from the Debian package ``dataset-fashion-mnist``, and the excerpts kept here.

Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; MIT licence, (c) 2017 Zalando SE) holds 60,000 training
and 10,000 test images, 28x28 grey levels in ten classes. Two excerpts are committed: ``test.npz`` (1,000 test images,
for measuring accuracy) and ``calibration.npz`` (500 training images, for calibrating quantisation). Both hold
``images`` uint8 (n, 1, 28, 28), ``labels`` uint8 (n,) and ``indices`` int32 (n,), the positions in the full split.

The model's input is ``(pixel / 255 - MEAN) / STD`` in float32: see `normalise`.

``dlc zoo fetch vision`` fetches the full set into the cache.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, locate

Split = Literal["train", "test"]

#: Mean and standard deviation of the training pixels scaled to 0..1 (0.28604 and 0.35302), as commonly rounded.
MEAN = 0.286
STD = 0.353

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

_FILES: dict[Split, tuple[str, str, int]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
PACKAGES = (
    DataPackage(
        "debian", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist",
        tuple(name for images, labels, _ in _FILES.values() for name in (images, labels)),
    ),
)  # fmt: skip
#: File, split, images and seed of each committed excerpt.
_EXCERPTS: dict[str, tuple[Split, int, int]] = {"test": ("test", 1000, 1708), "calibration": ("train", 500, 7747)}


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the model's input for pixels: ``(pixel / 255 - MEAN) / STD``, float32, of the same shape (N, 1, 28, 28).

    Raises:
        ValueError: the images are not uint8 of shape (N, 1, 28, 28).
    """
    if images.dtype != np.uint8 or images.shape[1:] != (1, 28, 28):
        raise ValueError(f"expected uint8 (N, 1, 28, 28), got {images.dtype} {images.shape}")
    pixels = images.astype(np.float32) / np.float32(255)
    return (pixels - np.float32(MEAN)) / np.float32(STD)


def find_dataset(directory: Path | None = None) -> Path:
    """Return the folder with the four gzipped IDX files; see `dlc.zoo.packages.locate`."""
    return locate(PACKAGES[0], "vision", directory)


def load_full(split: Split, directory: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load a whole split: images uint8 (60000 or 10000, 1, 28, 28) and labels uint8 (n,), 0..9.

    Args:
        split: ``train`` or ``test``.
        directory: the folder with the IDX files; see `find_dataset`.

    Raises:
        DlcError: the files are missing, cut off or not what their names say.
    """
    folder = find_dataset(directory)
    image_name, label_name, count = _FILES[split]
    images = _read_idx(folder / image_name, (count, 28, 28))
    return images.reshape(count, 1, 28, 28), _read_idx(folder / label_name, (count,))


def load_excerpt(name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load the committed excerpt ``test`` or ``calibration``: images uint8 (n, 1, 28, 28), labels uint8 (n,).

    Raises:
        DlcError: no such excerpt.
    """
    if name not in _EXCERPTS:
        raise DlcError(f"no excerpt {name!r} of Fashion-MNIST (known: {', '.join(_EXCERPTS)})")
    with np.load(excerpt_path(name)) as arrays:
        return arrays["images"], arrays["labels"]


def excerpt_path(name: str) -> Path:
    """Return the path of the committed excerpt `name`."""
    return Path(__file__).parent / f"{name}.npz"


def load_inputs(name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Load the excerpt ``test`` (n = 1000) or ``calibration`` (n = 500) as the model takes it.

    Returns:
        Normalised images, float32 (n, 1, 28, 28), and labels, uint8 (n,), 0..9.

    Raises:
        DlcError: no such excerpt.
    """
    images, labels = load_excerpt(name)
    return normalise(images), labels


def choose_excerpt(name: str, directory: Path | None = None) -> dict[str, np.ndarray]:
    """Choose the excerpt `name` from the full set again: a seeded draw without replacement, not balanced by class.

    Returns:
        The arrays of the ``.npz`` file: ``images``, ``labels`` and ``indices`` (see the module's text).

    Raises:
        DlcError: the full set is missing.
    """
    split, count, seed = _EXCERPTS[name]
    images, labels = load_full(split, directory)
    indices = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False)).astype(np.int32)
    return {"images": images[indices], "labels": labels[indices], "indices": indices}


def _read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes: magic 00 00 08 rank, the big-endian int32 sizes, then the bytes."""
    expected = bytes([0, 0, 8, len(shape)]) + np.array(shape, dtype=">i4").tobytes()
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DlcError(f"cannot read {path}: {error}") from error
    body = np.frombuffer(content, dtype=np.uint8, offset=min(len(expected), len(content)))
    if not content.startswith(expected) or body.size != np.prod(shape):
        raise DlcError(f"{path} is not an IDX file of unsigned bytes of shape {shape}")
    return body.reshape(shape)


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[np.float32]]:
    """Return the embedded images of `part` (``calibration`` or ``test``) by the model's input name."""
    return {"image": load_inputs(part)[0]}
