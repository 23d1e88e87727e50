"""What `Session.run` adds to the kernels' time, and how long a fresh process takes to load a package.

A model of one node (Relu on 16 numbers): the time of `run`, less that of the native entry called alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import dlc

LOAD = """
import sys, time
started = time.perf_counter()
import dlc
session = dlc.load(sys.argv[1])
seconds = time.perf_counter() - started
loaded = [name for name in ("tvm", "onnx", "torch") if name in sys.modules]
print(seconds, ",".join(loaded) or "none")
"""


def one_node() -> onnx.ModelProto:
    """Relu on 16 numbers."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def median(call: Callable[[], object], count: int = 20000) -> float:
    """Microseconds a call, median of blocks of 100."""
    blocks = []
    for _ in range(count // 100):
        started = time.perf_counter()
        for _ in range(100):
            call()
        blocks.append((time.perf_counter() - started) / 100)
    return float(np.median(blocks)) * 1e6


def main() -> None:
    """Measure and print."""
    session = dlc.load(dlc.compile(one_node()))
    x, y = np.ones(16, np.float32), np.empty(16, np.float32)
    feeds, outputs = {"x": x}, {"y": y}
    native, argument = session.executable.native_call([x], [y], {})
    bare = median(lambda: native(argument))
    print(f"native entry        {bare:6.2f} us")
    print(f"run                 {median(lambda: session.run(feeds)):6.2f} us")
    print(f"bound               {median(session.bind(feeds, outputs).run):6.2f} us")
    print(f"run, outputs given  {median(lambda: session.run(feeds, outputs)):6.2f} us")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vision.dlc"
        dlc.compile("zoo:vision").save(path)
        runs = [subprocess.check_output([sys.executable, "-c", LOAD, path], text=True).split() for _ in range(5)]
    print(f"load in a fresh process {min(float(r[0]) for r in runs):.3f} s; imported: {runs[0][1]}")


if __name__ == "__main__":
    main()
