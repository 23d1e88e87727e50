"""What a stage runs on and what lies between stages, in numbers that the cost model uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlc.hardware import Machine, measured_machine, memory_bytes

_HERTZ = 3e9  # only ratios matter, as in the CPU target's own cost model


@dataclass(frozen=True)
class Device:
    """One worker's share of a machine.

    Attributes:
        float_macs: float32 multiply-adds a second.
        int8_macs: int8 multiply-adds a second.
        bandwidth: bytes a second to and from memory.
        memory: bytes that weights and activations may take.
    """

    float_macs: float
    int8_macs: float
    bandwidth: float
    memory: int

    def macs(self, dtype: str) -> float:
        """Multiply-adds a second on operands of a dtype."""
        return self.int8_macs if dtype in ("int8", "uint8") else self.float_macs


@dataclass(frozen=True)
class Link:
    """The way from one stage to the next.

    Attributes:
        bandwidth: bytes a second.
        latency: seconds for a message of no length.
    """

    bandwidth: float
    latency: float

    def seconds(self, count: int) -> float:
        """The time that `count` bytes take; none for none."""
        return self.latency + count / self.bandwidth if count else 0.0


# gloo over the loopback device, as measured with messages of 8 bytes and of 1 MB.
LOOPBACK = Link(bandwidth=1e9, latency=150e-6)


def core_of(machine: Machine) -> Device:
    """One core of `machine`, as measured where it was, and all of its memory."""
    if machine.speeds is not None:
        speeds = machine.speeds
        floats, integers = (max(r.values()) for r in (speeds.multiply_adds, speeds.integer_multiply_adds))
        return Device(floats, integers, speeds.bandwidth[3], memory_bytes())
    lanes = 16 if "avx512f" in machine.features else 8 if "avx2" in machine.features else 4
    peak = 2 * lanes * _HERTZ
    dots = {"amx_int8", "avx512_vnni", "avx_vnni", "asimddp"} & machine.features
    return Device(peak, peak * (4 if dots else 2), 10e9, memory_bytes())


def this_device(memory: int | None = None) -> Device:
    """One core of this machine; `memory` bytes in place of the machine's."""
    device = core_of(measured_machine())
    return device if memory is None else replace(device, memory=memory)
