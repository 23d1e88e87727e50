"""From TIR to LLVM: the target description and the short list of passes that our kernels need.

Kernels arrive without blocks, schedules or threads, so most of TVM's default pipeline has nothing to do but takes
60 to 75 % of the compile time (measured on the embedded model); what remains gives the same machine code.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import StringImm

from dlc.hardware import this_machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.dot import DOT_BFLOAT16

_PIPELINES = {bits: f"dlc_cpu_{bits}" for bits in (32, 64)}


def _pipeline(bits: int) -> tuple[Any, Any, Any]:
    """The steps, with indices in `bits` bits where they fit."""
    steps = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(bits),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        # Not only for size: LLVM's masked intrinsics are declared by constants that it folds.
        tirx.transform.StmtSimplify(),
        tirx.transform.FP8ComputeLegalize(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
    ]
    sequence = tvm.ir.transform.Sequential(steps)
    return sequence, s_tir.pipeline.finalize_host_passes, s_tir.pipeline.finalize_device_passes


for _bits, _name in _PIPELINES.items():
    tirx.register_tir_pipeline(_name, partial(_pipeline, _bits))


def llvm_target(isa: Isa) -> Any:
    """TVM's target for one instruction set."""
    config: dict[str, Any] = {"kind": "llvm"}
    if isa.arch not in ("", this_machine().arch):
        config["mtriple"] = f"{isa.arch}-linux-gnu"
    if isa.mcpu:
        config["mcpu"] = isa.mcpu
    if isa.mattr:
        config["mattr"] = list(isa.mattr)
    return tvm.target.Target(config)


# Functions that TVM gives to the inliner and then drops.
_HELPERS = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @{DOT_BFLOAT16}(<16 x float> %sum, <16 x i32> %a, <16 x i32> %w) alwaysinline {{
  %left = bitcast <16 x i32> %a to <32 x bfloat>
  %right = bitcast <16 x i32> %w to <32 x bfloat>
  %result = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %left,
                                                                <32 x bfloat> %right)
  ret <16 x float> %result
}}
"""


def _with_helpers(module: Any) -> Any:
    """`module` with what its kernels call of `_HELPERS`."""
    functions = dict(module.functions)
    first = min(functions, key=lambda var: var.name_hint)
    zero, code = tirx.IntImm("int32", 0), StringImm(_HELPERS)
    functions[first] = functions[first].with_body(
        tirx.AttrStmt(zero, "pragma_import_llvm", code, functions[first].body)
    )
    return tvm.IRModule(functions)


# TVM asks whether a loop is short enough to unroll by itself in 32 bits: one of 2^29 steps over 4 statements is.
_CONFIG = {"tirx.UnrollLoop": {"auto_max_depth": -1}}


def compile_functions(module: Any, isa: Isa) -> Any:
    """Compile an IRModule of PrimFuncs; the result writes objects and shows assembly."""
    module = _with_helpers(module) if isa.bfloat16 else module
    try:
        return _compile(module, isa, 32)
    except ValueError as error:
        # A loop of 2^31 steps: the last fits 32 bits, their number, which TVM then writes, does not.
        if "exceeds range of int32" not in str(error):
            raise
        return _compile(module, isa, 64)


def _compile(module: Any, isa: Isa, bits: int) -> Any:
    with tvm.transform.PassContext(config=_CONFIG):
        return tvm.compile(module, target=llvm_target(isa), tir_pipeline=_PIPELINES[bits]).mod
