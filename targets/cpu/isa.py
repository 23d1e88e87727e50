"""Instruction sets as descriptions: what the kernel generators need to know, and nothing else.

A new instruction set is one more `Isa` here; a new kind of multiply-add is one more entry of `kernels/dot.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlc.errors import DlcError
from dlc.hardware import Machine


@dataclass(frozen=True)
class Isa:
    """One level of instructions that kernels are generated for.

    Attributes:
        name: how users and `dlc explain` call it.
        mcpu, mattr: what LLVM is told.
        requires: Linux CPU flags that a machine must have to run the code.
        vector_bits: width of one vector register.
        registers: number of architectural vector registers.
        dot: the integer multiply-add, of `kernels/dot.py`: ``amx``, ``vnni`` and ``usdot`` (u8 x s8, groups of 4),
            ``sdot`` (s8 x s8, groups of 4), ``pmaddwd`` (s16 pairs) or ``plain``.
        has_fma: fused float multiply-add, and rounding to an integer, are instructions.
        arch: what ``platform.machine()`` says on machines that run the code; empty for that of the compiling machine.
        bfloat16: multiplies pairs of bfloat16 by pairs of bfloat16 with sums in float32.
        emulated: tile instructions are generated as what they mean, for processors that have none.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...]
    requires: frozenset[str]
    vector_bits: int
    registers: int
    dot: str
    has_fma: bool
    arch: str = "x86_64"
    bfloat16: bool = False
    emulated: bool = False

    def lanes(self, dtype_bits: int = 32) -> int:
        """Elements of `dtype_bits` bits in one vector register."""
        return self.vector_bits // dtype_bits


_AVX2 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_VNNI = _AVX512 | {"avx512_vnni"}
_BF16 = _VNNI | {"avx512_bf16"}
_AMX = _BF16 | {"amx_tile", "amx_int8"}

# Best first. 512-bit code asks LLVM for it by name: by default it prefers 256 bits on several CPUs.
X86_LEVELS: tuple[Isa, ...] = (
    Isa("amx", "cooperlake", ("-prefer-256-bit", "+amx-tile", "+amx-int8"), _AMX, 512, 32, "amx", True, bfloat16=True),
    Isa("avx512_bf16", "cooperlake", ("-prefer-256-bit",), _BF16, 512, 32, "vnni", True, bfloat16=True),
    Isa("avx512_vnni", "cascadelake", ("-prefer-256-bit",), _VNNI, 512, 32, "vnni", True),
    Isa("avx512", "skylake-avx512", ("-prefer-256-bit",), _AVX512, 512, 32, "pmaddwd", True),
    Isa("avx2", "haswell", (), _AVX2, 256, 16, "pmaddwd", True),
    Isa("sse2", "x86-64", (), frozenset({"sse2"}), 128, 16, "pmaddwd", False),
)
# What `cpu:portable` holds code for: every x86-64 processor of the last ten years has one of them.
PORTABLE = tuple(isa for isa in X86_LEVELS if isa.has_fma)
# Never chosen by itself: the code generator of `amx` on any processor with VNNI, to test it and to look for faults.
AMX_EMULATED = Isa("amx_emulated", "cascadelake", ("-prefer-256-bit",), _VNNI, 512, 32, "amx", True, emulated=True)
GENERIC = Isa("generic", "", (), frozenset(), 128, 16, "plain", False, arch="")

_NEON = frozenset({"asimd"})
_DOT = _NEON | {"asimddp"}
_I8MM = _DOT | {"i8mm"}
AARCH64_LEVELS: tuple[Isa, ...] = (
    Isa("aarch64-i8mm", "", ("+neon", "+dotprod", "+i8mm"), _I8MM, 128, 32, "usdot", True, "aarch64"),
    Isa("aarch64-dot", "", ("+neon", "+dotprod"), _DOT, 128, 32, "sdot", True, "aarch64"),
    Isa("aarch64", "", ("+neon",), _NEON, 128, 32, "plain", True, "aarch64"),
)
_LEVELS = {"x86_64": X86_LEVELS, "aarch64": AARCH64_LEVELS}


def levels_of(machine: Machine) -> tuple[Isa, ...]:
    """The levels that `machine` can run, best first; never empty."""
    found = tuple(isa for isa in _LEVELS.get(machine.arch, ()) if isa.requires <= machine.features)
    return found or (GENERIC,)


def isa_by_name(name: str) -> Isa:
    """The level called `name`; raises DlcError that lists the known ones."""
    every = (*X86_LEVELS, AMX_EMULATED, *AARCH64_LEVELS, GENERIC)
    for isa in every:
        if isa.name == name:
            return isa
    known = ", ".join(isa.name for isa in every)
    raise DlcError(f"unknown CPU instruction set '{name}'; known: {known}")
