"""Encoding: every field of every instruction survives, at the bit positions of the published architecture."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.errors import DlcError
from dlc.targets.vta import isa
from dlc.targets.vta.config import Config, config_by_name
from dlc.targets.vta.isa import Alu, AluOp, Finish, Gemm, Instruction, Load, Memory, MicroOp, Opcode, Store

Q31, ORIGINAL = config_by_name("q31"), config_by_name("original")
SMALL = Config("small", 1, True, uop_bytes=1 << 10, inp_bytes=1 << 12, wgt_bytes=1 << 15, acc_bytes=1 << 13)


@st.composite
def instructions(draw: st.DrawFn, config: Config) -> Instruction:
    kind = isa.KINDS[draw(st.sampled_from(list(Opcode)))]
    values: dict[str, Any] = {}
    for word in isa.layout(kind.opcode, config):
        for name, width in word:
            values[name] = draw(st.integers(0, (1 << width) - 1))
    del values["opcode"]
    for field in fields(kind):
        if field.type == "bool":
            values[field.name] = bool(values[field.name])
    if "memory" in values:
        values["memory"] = draw(st.sampled_from(list(Memory)))
    if "imm" in values:
        known = [op for op in AluOp if config.requantise or op < AluOp.REQ]
        values |= {"alu_opcode": draw(st.sampled_from(known)), "imm": draw(st.integers(-(1 << 15), (1 << 15) - 1))}
    return kind(**values)


@pytest.mark.parametrize("config", [Q31, ORIGINAL, SMALL], ids=lambda c: c.name)
def test_every_field_survives(config: Config) -> None:
    @settings(max_examples=150, deadline=None)
    @given(instructions(config))
    def check(instruction: Instruction) -> None:
        data = isa.encode(instruction, config)
        assert len(data) == isa.SIZE
        assert isa.decode(data, config) == instruction

    check()


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([Q31, SMALL]))
def test_micro_ops_survive(data: st.DataObject, config: Config) -> None:
    one = st.builds(
        MicroOp,
        st.integers(0, config.accs - 1),
        st.integers(0, max(config.accs, config.inputs) - 1),
        st.integers(0, config.weights - 1),
    )
    uops = data.draw(st.lists(one, min_size=1, max_size=5))
    assert isa.decode_uops(isa.encode_uops(uops, config), config) == uops


#: First and last bit of each field for the published buffer sizes.
POSITIONS = {
    Load: {
        "pop_prev": (3, 3), "pop_next": (4, 4), "push_prev": (5, 5), "push_next": (6, 6), "memory": (7, 9),
        "sram_base": (10, 25), "dram_base": (26, 57), "y_size": (64, 79), "x_size": (80, 95), "x_stride": (96, 111),
        "y_pad_top": (112, 115), "y_pad_bottom": (116, 119), "x_pad_left": (120, 123), "x_pad_right": (124, 127),
    },
    Gemm: {
        "reset": (7, 7), "uop_begin": (8, 20), "uop_end": (21, 34), "iter_out": (35, 48), "iter_in": (49, 62),
        "dst_factor_out": (64, 74), "dst_factor_in": (75, 85), "src_factor_out": (86, 96), "src_factor_in": (97, 107),
        "wgt_factor_out": (108, 117), "wgt_factor_in": (118, 127),
    },
    Alu: {"src_factor_in": (97, 107), "alu_opcode": (108, 110), "use_imm": (111, 111), "imm": (112, 127)},
}  # fmt: skip


@pytest.mark.parametrize("kind", POSITIONS, ids=lambda k: k.__name__)
def test_bit_positions(kind: type[Instruction]) -> None:
    base = {"iter_out": 0, "iter_in": 0} if kind is not Load else {"y_size": 0}
    empty = kind(
        **base, **({"memory": Memory.UOP} if kind is Load else {}), **({"alu_opcode": AluOp.MIN} if kind is Alu else {})
    )
    zero = int.from_bytes(isa.encode(empty, ORIGINAL), "little")
    assert zero == kind.opcode
    for name, (first, last) in POSITIONS[kind].items():
        largest: Any = (1 << (last - first + 1)) - 1
        if name == "memory":
            first, last, largest = 7, 9, Memory.ACC8
        elif name == "alu_opcode":
            largest = AluOp.MUL
        elif name == "imm":
            largest = -1
        word = int.from_bytes(isa.encode(replace(empty, **{name: largest}), ORIGINAL), "little") ^ zero
        expected = (int(largest) & ((1 << (last - first + 1)) - 1)) << first
        assert word == expected, name


def test_micro_op_positions() -> None:
    assert isa.encode_uops([MicroOp(1, 0, 0), MicroOp(0, 1, 0), MicroOp(0, 0, 1)], Q31).tolist() == [
        1,
        1 << 11,
        1 << 22,
    ]
    assert isa.encode_uops([MicroOp(2047, 2047, 1023)], Q31).tolist() == [0xFFFFFFFF]


def test_disassembly_tells_the_fields() -> None:
    gemm = Gemm(uop_begin=3, uop_end=7, iter_out=2, dst_factor_in=1, wgt_factor_out=9, pop_prev=True)
    assert isa.disassemble(gemm) == "GEMM uops 3:7 loops 2x1 dst 0,1 src 0,0 wgt 9,0 pop_prev"
    alu = Alu(uop_end=1, alu_opcode=AluOp.SHR, use_imm=True, imm=-3)
    assert isa.disassemble(alu) == "ALU.SHR uops 0:1 loops 1x1 dst 0,0 src 0,0 imm -3"
    load = Load(memory=Memory.ACC8, sram_base=5, dram_base=9, y_size=2, x_size=3, x_stride=4, x_pad_left=1)
    assert isa.disassemble(load) == "LOAD ACC8 sram 5 dram 9 2x3 stride 4 pad (0, 0, 1, 0)"
    assert isa.disassemble(Finish(pop_next=True)) == "FINISH pop_next"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DlcError, match=r"STORE OUT .*: y_size is 65536, outside \[0, 65535\]"):
        isa.encode(Store(y_size=1 << 16), Q31)
    with pytest.raises(DlcError, match=r"imm is 32768, outside \[-32768, 32767\]"):
        isa.encode(Alu(imm=1 << 15), Q31)
    with pytest.raises(DlcError, match=r"micro-op: wgt is 1024, outside \[0, 1023\]"):
        isa.encode_uops([MicroOp(0, 0, 1024)], Q31)


def test_what_is_no_instruction_is_refused() -> None:
    good = isa.encode(Finish(), ORIGINAL)
    with pytest.raises(
        DlcError, match=r"instruction 1: .* is not an instruction of vta:original: 7 is not a valid Opcode"
    ):
        isa.decode_program(good + bytes([7]) + bytes(15), ORIGINAL)
    request = isa.encode(Alu(uop_end=1, alu_opcode=AluOp.REQ), Q31)
    with pytest.raises(DlcError, match="vta:original: the ALU has no operation REQ"):
        isa.decode(request, ORIGINAL)
    with pytest.raises(DlcError, match="bits are set that no field has"):
        isa.decode(good[:8] + bytes([1]) + bytes(7), ORIGINAL)
    with pytest.raises(DlcError, match="of 17 bytes is not a multiple of 16"):
        isa.decode_program(good + b"x", ORIGINAL)


def test_configurations() -> None:
    assert (Q31.uops, Q31.inputs, Q31.weights, Q31.accs) == (8192, 2048, 1024, 2048)
    with pytest.raises(DlcError, match="unknown configuration 'q15' of target vta; known: original, q31"):
        config_by_name("q15")
    with pytest.raises(DlcError, match="the inp buffer has 96 entries; a power of two"):
        replace(Q31, inp_bytes=96 * 16)
    with pytest.raises(DlcError, match="do not fit a micro-op of 32 bits"):
        replace(Q31, wgt_bytes=1 << 20)
