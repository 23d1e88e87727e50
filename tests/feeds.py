"""Inputs on which real models have something to say, each in up to three sizes: rendered text, tones, token numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Feed = dict[str, np.ndarray]


def _page(width: int, height: int, lines: int = 1) -> np.ndarray:
    """Dark text on white as (height, width, 3) of 0 to 255."""
    image = Image.new("RGB", (width, height), "white")
    draw, step = ImageDraw.Draw(image), height // lines
    for line in range(lines):
        font = ImageFont.load_default(step * 0.6)
        draw.text((step * 0.2, step * (line + 0.15)), f"Invoice 20{41 + line}", fill="black", font=font)
    return np.asarray(image, np.float32)


def _centred(page: np.ndarray, count: int = 1) -> np.ndarray:
    """`count` copies of a page, (count, 3, height, width) of -1 to 1."""
    return np.repeat(((page / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None], count, axis=0).astype(np.float32)


def _voice(count: int, samples: int) -> np.ndarray:
    """A hum that comes and goes, (count, samples)."""
    time = np.arange(count * samples) / 16000
    hum = 0.3 * np.sin(2 * np.pi * 180 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    return hum.reshape(count, samples).astype(np.float32)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _characters(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng([batch, length]).integers(1, 30, (batch, length))


def _encoder() -> list[Feed]:
    sizes = ((1, 3), (2, 9), (4, 17))
    return [{"src": _characters(b, n), "src_mask": np.ones((b, n), bool)} for b, n in sizes]


def _decoder() -> list[Feed]:
    return [
        {"prefix": _characters(b, t), "memory": _normal(b, n, 256), "src_mask": np.ones((b, n), bool),
         "hidden": _normal(b, 2, 256)}
        for b, t, n in ((1, 1, 3), (2, 4, 9), (4, 7, 17))
    ]  # fmt: skip


def _vad(rates: tuple[tuple[int, int], ...], asked: bool) -> list[Feed]:
    """One call a (rate, batch): a window of 36 ms at either rate, with a state that is not zero."""
    feeds = []
    for rate, batch in rates:
        feed = {"input": _voice(batch, 576 * rate // 16000), "state": 0.1 * _normal(2, batch, 128)}
        feeds.append(feed | ({"sr": np.array(rate)} if asked else {}))
    return feeds


def _sentences() -> list[Feed]:
    feeds = []
    for batch, length in ((1, 5), (2, 31), (3, 128)):
        ids = np.random.default_rng(length).integers(100, 20000, (batch, length))
        mask = np.ones((batch, length), np.int64)
        mask[1:, length - 3 :] = 0
        feeds.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return feeds


_WIDE = ((16000, 1), (16000, 3), (16000, 5))

FEEDS: dict[str, Callable[[], list[Feed]]] = {
    "minilm-int8": _sentences,
    "ocr-detector": lambda: [
        {"x": _centred(_page(w, h, n))} for w, h, n in ((64, 96, 2), (320, 160, 3), (256, 224, 4))
    ],
    "ocr-recogniser": lambda: [{"x": _centred(_page(w, 48), n)} for w, n in ((100, 1), (320, 2), (200, 3))],
    "ocr-classifier": lambda: [{"x": _centred(_page(w, 48), n)} for w, n in ((192, 1), (192, 3), (160, 2))],
    "captcha": lambda: [{"input1": _centred(_page(w, 64))[:, :1]} for w in (100, 160, 333)],
    "captcha-int8": lambda: [{"input1": _centred(_page(w, 64))[:, :1]} for w in (100, 160, 333)],
    "captcha-detector": lambda: [{"images": _page(416, 416, 5).transpose(2, 0, 1)[None]}],
    "romanizer-encoder": _encoder,
    "romanizer-decoder": _decoder,
    "romanizer-persian-encoder": _encoder,
    "romanizer-persian-decoder": _decoder,
    "vad": lambda: _vad((*_WIDE, (8000, 2)), asked=True),
    "vad-half": lambda: _vad(_WIDE, asked=False),
    "vad-op15": lambda: _vad(_WIDE, asked=True),
    "vad-op18": lambda: _vad(_WIDE, asked=True),
    "vad-sequence": lambda: [
        {"input": _voice(t, 576), "h": 0.1 * _normal(1, 1, 128), "c": 0.1 * _normal(1, 1, 128)} for t in (1, 7, 33)
    ],
    "vad-fixed": lambda: _vad(_WIDE[:1], asked=False),
}
