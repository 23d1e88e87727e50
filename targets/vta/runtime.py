"""The VTA target, runtime's half: runs a program in the functional simulator, image by image. Imports no TVM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dlc import explain
from dlc.errors import DlcError
from dlc.package import Package
from dlc.targets.vta.config import config_by_name
from dlc.targets.vta.program import Program
from dlc.targets.vta.simulator import Plans, Simulator


class VtaExecutable:
    """A loaded program. Calls in flight each have a memory of their own, so threads share it."""

    def __init__(self, package: Package) -> None:
        build = package.manifest["build"]
        config = config_by_name(build["config"])
        if build["version"] != config.version:
            raise DlcError(
                f"{package.name}: its program is for version {build['version']} of vta:{config.name}; "
                f"this dlc simulates version {config.version}: compile again"
            )
        self.program = Program.from_json(build, package.member("instructions.bin"), package.member("memory.bin"))
        self._arguments, self._results = build["arguments"], build["results"]
        self._shapes = [output["shape"] for output in package.manifest["outputs"]]
        self._explanation = explain.read(package)
        self._plans: Plans = {}
        self._arenas: list[np.ndarray] = []

    def clone(self) -> VtaExecutable:
        """The executable itself: calls share nothing that they write."""
        return self

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents."""
        from dlc.ir.interpret import evaluate_dim

        return [tuple(evaluate_dim(d, sizes) for d in shape) for shape in self._shapes]

    def _image(self, arena: np.ndarray, inputs: list[np.ndarray], number: int) -> None:
        """Run the program on one image of the batch."""
        program = self.program
        for name, array in zip(self._arguments, inputs, strict=True):
            for place in program.inputs[name]:
                tensor = program.tensors[place]
                shape = tensor.patches.shape if tensor.patches is not None else tensor.shape
                tensor.write(arena, array[number].reshape(shape))
        Simulator(program.config, arena, self._plans).run(program.instructions)

    def _arena(self) -> np.ndarray:
        try:
            return self._arenas.pop()  # atomic under the GIL
        except IndexError:
            return self.program.image()

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Compute all outputs; see `dlc.targets.base.Executable`."""
        arena = self._arena()
        for number in range(len(inputs[0])):
            self._image(arena, inputs, number)
            for name, output in zip(self._results, outputs, strict=True):
                output[number] = self.program.tensors[name].read(arena).reshape(output.shape[1:])
        self._arenas.append(arena)

    def trace(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Every layer's value, dequantised: a tensor keeps its place in memory until the next image."""
        arena, rows = self._arena(), [row for row in self._explanation.nodes if "tensor" in row]
        values: dict[str, list[np.ndarray]] = {row["tensor"]: [] for row in rows}
        for number in range(len(inputs[0])):
            self._image(arena, inputs, number)
            for name, images in values.items():
                images.append(self.program.tensors[name].read(arena))
        self._arenas.append(arena)
        for row in rows:
            codes = np.stack(values[row["tensor"]])
            yield row, self._explanation.real(row["value"], codes)


def load(package: Package, threads: int) -> VtaExecutable:
    """Load a program.

    Raises:
        DlcError: it is for another version of the instruction set, or `threads` is not 1.
    """
    if threads != 1:
        raise DlcError(f"target vta runs a session on one thread, not {threads}; run several sessions in parallel")
    return VtaExecutable(package)
