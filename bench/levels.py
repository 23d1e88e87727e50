"""int8 products with the instruction set held down: ours beside torch's oneDNN, on one machine, one thread.

    python bench/levels.py [--level avx2 ...] [--blocks 30]

Rows of codes times a constant matrix, requantised to codes: ours for `cpu:LEVEL`, torch's `quantized::linear` by oneDNN
in a process whose ONEDNN_MAX_CPU_ISA is the level's, with the kernel that oneDNN's log names. Ours is to be as fast as
torch's, faster than our own float product at that level, and to make the same codes as at the best level.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
from engines import onednn_linear
from turns import measure, ratios, verdict

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc

LEVELS = {"avx512_vnni": "AVX512_CORE_VNNI", "avx512": "AVX512_CORE", "avx2": "AVX2"}
WIDTH = 1024
STEP, WEIGHT_STEP, RESULT_STEP, ZERO = (np.float32(0.02), np.float32(0.001), np.float32(0.05), np.uint8(128))


def integer_product(rows: int, weight: np.ndarray) -> onnx.ModelProto:
    """uint8 codes (rows, K) times int8 codes (K, N): uint8."""
    net = networks.Net()
    zero, w_zero = net.constant("zero", ZERO), net.constant("w_zero", np.int8(0))
    steps = [net.constant(f"step{i}", value) for i, value in enumerate((STEP, WEIGHT_STEP, RESULT_STEP))]
    x = net.op("DequantizeLinear", ["x", steps[0], zero])
    w = net.op("DequantizeLinear", [net.constant("w", weight), steps[1], w_zero])
    net.op("QuantizeLinear", [net.op("MatMul", [x, w]), steps[2], zero], ["y"])
    shapes = {"x": (rows, weight.shape[0]), "y": (rows, weight.shape[1])}
    given, made = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, s) for n, s in shapes.items())
    return net.model("product", [given], [made])


def onednn_kernel(run: Callable[[], Any]) -> str:
    """The kernel of the last product that oneDNN logs, which it does to file 1."""
    import torch

    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                run()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        lines = [line.split(",") for line in log.read().decode().splitlines() if ",exec," in line]
    found = [line for line in lines if {"inner_product", "matmul"} & set(line)]
    return found[-1][found[-1].index("exec") + 3] if found else "none"


def _level(level: str, rows: int, blocks: int) -> None:
    """Print one row of the table; the process's environment holds oneDNN down."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(rows)
    weight = rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    x = rng.integers(0, 256, (rows, WIDTH)).astype(np.uint8)
    model, floats = integer_product(rows, weight), networks.product(rows, WIDTH, WIDTH)
    best, ours, fp32 = (
        dlc.load(dlc.compile(each, target=target))
        for each, target in ((model, "cpu"), (model, f"cpu:{level}"), (floats, f"cpu:{level}"))
    )
    linear = onednn_linear(weight, WEIGHT_STEP, RESULT_STEP, ZERO)
    codes = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), float(STEP), int(ZERO))
    engines = {
        "dlc": partial(ours.run, {"x": x}),
        "torch": partial(linear, codes),
        "fp32": partial(fp32.run, {"x": x.astype(np.float32)}),
    }
    got = engines["dlc"]()["y"]
    same = np.array_equal(best.run({"x": x})["y"], got)
    near = int(np.abs(engines["torch"]().int_repr().numpy().astype(int) - got).max())
    kernel = onednn_kernel(engines["torch"])
    times = measure(engines, blocks, 0.05)
    shown = ", ".join(f"{name} {np.median(each):.3f} ms" for name, each in times.items())
    print(f"{level} {rows}x{WIDTH}x{WIDTH}: {shown}; oneDNN's {kernel}, codes differ by at most {near}")
    for name in ("torch", "fp32"):
        print(f"  times {name}: {verdict(ratios({key: times[key] for key in ('dlc', name)})[1], 1.0)}")
    print(f"  the codes of the best level: {'yes' if same else 'NO'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a process a level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", action="append", choices=list(LEVELS))
    parser.add_argument("--blocks", type=int, default=30)
    options = parser.parse_args(arguments)
    levels = options.level or list(LEVELS)
    if len(levels) == 1 and os.environ.get("ONEDNN_MAX_CPU_ISA") == LEVELS[levels[0]]:
        for rows in (256, 1024):
            _level(levels[0], rows, options.blocks)
        return
    for level in levels:
        held = {"ONEDNN_MAX_CPU_ISA": LEVELS[level], "ATEN_CPU_CAPABILITY": level.split("_")[0]}
        command = [sys.executable, __file__, "--level", level, "--blocks", str(options.blocks)]
        subprocess.run(command, check=True, env=os.environ | held)


if __name__ == "__main__":
    main()
