"""The accelerator's parameters: buffer depths, what an index needs, and which instructions there are."""

from __future__ import annotations

from dataclasses import dataclass

from dlc.errors import DlcError

BLOCK = 16  #: channels a vector: the array multiplies a vector of 16 by a block of 16 x 16 every cycle


@dataclass(frozen=True)
class Config:
    """One form of the hardware.

    Attributes:
        name: what stands behind ``vta:``.
        version: of the instruction set; a program runs on the version it was made for.
        requantise: whether the ALU has the opcodes REQ and SETQ (docs/vta.md).
        uop_bytes, inp_bytes, wgt_bytes, acc_bytes: buffer sizes. OUT has as many entries as ACC.
    """

    name: str
    version: int
    requantise: bool
    uop_bytes: int = 32 << 10
    inp_bytes: int = 32 << 10
    wgt_bytes: int = 256 << 10
    acc_bytes: int = 128 << 10

    def __post_init__(self) -> None:
        for what, depth in (("uop", self.uops), ("inp", self.inputs), ("wgt", self.weights), ("acc", self.accs)):
            if depth < 2 or depth & (depth - 1):
                raise DlcError(f"vta: the {what} buffer has {depth} entries; a power of two of at least 2 is needed")
        if self.acc_bits + max(self.inp_bits, self.acc_bits) + self.wgt_bits > 32:
            raise DlcError("vta: the buffers are too deep: their indices do not fit a micro-op of 32 bits")

    @property
    def uops(self) -> int:
        """Micro-ops of 4 bytes."""
        return self.uop_bytes // 4

    @property
    def inputs(self) -> int:
        """INP entries: 16 x int8."""
        return self.inp_bytes // BLOCK

    @property
    def weights(self) -> int:
        """WGT entries: 16 x 16 x int8."""
        return self.wgt_bytes // (BLOCK * BLOCK)

    @property
    def accs(self) -> int:
        """ACC entries: 16 x int32; and OUT entries: 16 x int8."""
        return self.acc_bytes // (4 * BLOCK)

    @property
    def uop_bits(self) -> int:
        """Width of an index of the micro-op buffer."""
        return self.uops.bit_length() - 1

    @property
    def inp_bits(self) -> int:
        """Width of an INP index."""
        return self.inputs.bit_length() - 1

    @property
    def wgt_bits(self) -> int:
        """Width of a WGT index."""
        return self.weights.bit_length() - 1

    @property
    def acc_bits(self) -> int:
        """Width of an ACC index."""
        return self.accs.bit_length() - 1


CONFIGS = {
    "q31": Config("q31", 1, requantise=True),
    "original": Config("original", 1, requantise=False),
}


def config_by_name(name: str) -> Config:
    """The configuration behind ``vta:name``; DlcError for an unknown one."""
    if name not in CONFIGS:
        raise DlcError(f"unknown configuration '{name}' of target vta; known: {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]
