"""The multi target: ``multi:<n>x<target>``, a model over n processes, each with a part compiled for `<target>`."""

from __future__ import annotations

import importlib.util
import re
from typing import Any, ClassVar

from dlc.errors import DlcError
from dlc.hardware import this_machine
from dlc.ir.graph import Graph
from dlc.options import Options
from dlc.pipeline import Context, Pass
from dlc.targets.base import Build, Place, Target, find_target
from dlc.targets.multi.devices import LOOPBACK, this_device

_SPEC = re.compile(r"(\d+)x([a-z].*)")
_MEMORY = re.compile(r"memory=(\d+)([KMG]?)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_DEFAULT = "2xcpu"
_USAGE = "expected multi:<n>x<target>, as in multi:2xcpu, then perhaps ,tensor or ,memory=500M"


class MultiTarget(Target):
    """n workers, placed and watched by Ray; tensors go between them over gloo.

    ``multi:2xcpu`` is a pipeline of two stages; ``multi:2xcpu,tensor`` splits convolutions and matmuls over their
    outputs; ``,memory=500M`` is what one device's weights and activations may take.
    """

    name: ClassVar[str] = "multi"
    runtime: ClassVar[str] = "dlc.targets.multi.runtime"
    runs_host: ClassVar[bool] = True  # as part of a stage, which its inner target composes

    def __init__(self, count: int, inner: Target, tensor: bool, memory: int | None, spec: str) -> None:
        self.count, self.inner, self.tensor, self.memory, self._spec = count, inner, tensor, memory, spec

    @classmethod
    def parse(cls, spec: str) -> MultiTarget:
        """``multi`` is ``multi:2xcpu``; DlcError for what is not a number of known targets."""
        rest, tensor, memory = spec.partition(":")[2] or _DEFAULT, False, None
        while True:
            head, comma, option = rest.rpartition(",")
            match = _MEMORY.fullmatch(option)
            if comma and option == "tensor":
                tensor = True
            elif comma and match:
                memory = int(match[1]) * _UNITS[match[2]]
            else:
                break
            rest = head
        found = _SPEC.fullmatch(rest)
        if found is None or int(found[1]) < 1:
            raise DlcError(f"unknown target '{spec}': {_USAGE}")
        inner = find_target(found[2])
        if isinstance(inner, MultiTarget):
            raise DlcError(f"unknown target '{spec}': multi cannot be its own inner target")
        return cls(int(found[1]), inner, tensor, memory, spec)

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return self._spec

    def identity(self) -> dict[str, Any]:
        """The inner target's, and the memory that a device has."""
        return {"inner": self.inner.identity(), "memory": this_device(self.memory).memory}

    def passes(self, options: Options) -> list[Pass]:
        """None: the inner target's passes run on each part."""
        return []

    def places(self, graph: Graph) -> dict[str, Place]:
        """What the inner target says: each process has its kernels."""
        return self.inner.places(graph)

    def build(self, module: Any, context: Context) -> Build:
        """Cut, compile each part for the inner target, and write down who sends what to whom."""
        from dlc.compiler import part_package
        from dlc.targets.multi import pipeline, tensor

        divide = tensor.divide if self.tensor else pipeline.divide
        parts = divide(module, context, self.count, this_device(self.memory), LOOPBACK, f"target {self.spec}")
        members: dict[str, bytes | memoryview] = {}
        rows: list[dict[str, Any]] = []
        for number, (name, part) in enumerate(parts.modules.items()):
            context.progress(name, number, len(parts.modules))
            package, built = part_package(part, self.inner, context)
            members |= package.nested_members(name)
            for row in built.explanation:
                added = parts.explain(name, row)
                if added is not None:
                    rows.append({**row, **added})
        return Build(members, parts.plan.as_json(), rows)

    def describe(self) -> dict[str, Any]:
        """Whether Ray and torch are installed, and the cores that workers can have."""
        missing = [name for name in ("ray", "torch") if importlib.util.find_spec(name) is None]
        cores = this_machine().cores
        text = f"a model over several processes, such as multi:2xcpu or multi:2xcpu,tensor; {cores} cores here"
        if missing:
            return {"available": False, "reason": f"{' and '.join(missing)} not installed: install dlc[distributed]"}
        return {"available": True, "description": text, "cores": cores, "memory": this_device(self.memory).memory}
