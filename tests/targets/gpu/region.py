"""Compile one region's kernel for OpenCL, run it between guard zones, and compare with the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import pyopencl as cl

from dlc.ir.graph import Graph
from dlc.ir.interpret import evaluate_dim, interpret
from dlc.targets.gpu.lower import generate
from dlc.targets.gpu.opencl import EXACT_DIVISION, OPTIONS, opencl_devices
from dlc.targets.gpu.source import OPENCL_PRELUDE, Kernel

_GUARD = 256  # bytes before and after an output; at the same time a multiple of every device's alignment
_PATTERN = 0xA5


def run(kernel: Kernel, text: str, arrays: dict[str, np.ndarray], out: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    """Run `text`, which holds `kernel` as ``kernel_under_test``; AssertionError on a write outside the output."""
    devices, reason = opencl_devices()
    assert devices, reason
    context = cl.Context([devices[0]])
    queue = cl.CommandQueue(context)
    built = cl.Program(context, text).build([*OPTIONS, EXACT_DIVISION])
    read = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
    operands = [arrays[o] if isinstance(o, str) else o for o in kernel.operands]
    buffers = [cl.Buffer(context, read, hostbuf=np.ascontiguousarray(a).reshape(-1)) for a in operands]
    guarded = np.full(out.nbytes + 2 * _GUARD, _PATTERN, np.uint8)
    whole = cl.Buffer(context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=guarded)
    place = whole.get_sub_region(_GUARD, max(out.nbytes, 1))
    dims = [np.int32(evaluate_dim(d, sizes)) for d in kernel.dims]
    blocks = [-(-prod(evaluate_dim(d, sizes) for d in axis.extents) // axis.tile) for axis in kernel.grid]
    threads = (kernel.threads, *(1 for _ in blocks[1:]))
    launch = cl.Kernel(built, "kernel_under_test")
    launch.set_args(*buffers, place, *dims)
    cl.enqueue_nd_range_kernel(queue, launch, tuple(b * t for b, t in zip(blocks, threads, strict=True)), threads)
    cl.enqueue_copy(queue, guarded, whole)
    queue.finish()
    outside = np.concatenate([guarded[:_GUARD], guarded[_GUARD + out.nbytes :]])
    assert np.all(outside == _PATTERN), "bytes written outside the output"
    return guarded[_GUARD : _GUARD + out.nbytes].view(out.dtype).reshape(out.shape)


def check(
    kind: str,
    body: Graph,
    arrays: Sequence[np.ndarray],
    constants: Sequence[str] = (),
    sizes: dict[str, int] | None = None,
    rtol: float = 0.0,
    edit: Callable[[str], str] = lambda text: text,
) -> Kernel:
    """Generate, run, compare: floats within `rtol` of the largest magnitude, all else exactly.

    Args:
        constants: inputs that the compiler knows.
        edit: what is done to the kernel's text before it is compiled.
    """
    named = dict(zip((v.name for v in body.inputs), arrays, strict=True))
    (expected,) = interpret(body, named, sizes=sizes or {})
    kernel = generate(kind, body, {n: named[n] for n in constants})
    text = f"{OPENCL_PRELUDE}\n{edit(kernel.text('kernel_under_test'))}"
    result = run(kernel, text, named, expected, sizes or {})
    if rtol and expected.dtype.kind == "f":
        bound = rtol * max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=bound)
    else:
        np.testing.assert_array_equal(result, expected)
    return kernel
