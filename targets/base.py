"""What a target is: the interface that every folder of `targets/` implements, and how targets are found.

A target has two halves that never meet in one process by necessity. The *compiler's half* is a `Target`: it knows the
hardware, adds its passes and turns the last IR into members of a package. The *runtime's half* is a module with one
function, ``load(package, threads) -> Executable``; it is imported when a package is loaded and needs no compiler.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from dlc.errors import DlcError
from dlc.ir.ops.host import FIRST, IF, LOOP, ONNX, STEPS

if TYPE_CHECKING:
    from dlc.ir.graph import Node
    from dlc.options import Options
    from dlc.pipeline import Context, Pass

ENTRY_POINTS = "dlc.targets"


@dataclass(frozen=True)
class Variant:
    """One form of the code in a package, for machines that can run it.

    Attributes:
        name: how users and `dlc inspect` call it.
        arch: what ``platform.machine()`` says on machines that run it; empty for any.
        requires: CPU flags as Linux names them.
        members: the package members that only this variant needs.
    """

    name: str
    arch: str = ""
    requires: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "requires": sorted(self.requires), "members": list(self.members)}


@dataclass
class Build:
    """What a target hands to the package.

    Attributes:
        members: package member name -> its bytes (native code, constants made by `safetensors_bytes`).
        manifest: the target's own part of the manifest, JSON-able; its runtime module finds it under ``build``.
        explanation: one row a kernel in execution order: ``node`` (the ONNX origin), ``value`` (the ONNX name of what
            it makes), ``op``, ``precision``, ``kernel``, ``tile``, ``why_not_better``, ``predicted_us``; keys that do
            not apply are left out.
        variants: best first; none means that every machine can run the package.
        runtime: the dotted name of the runtime module where it is not the target's own.
    """

    members: Mapping[str, bytes | memoryview]
    manifest: dict[str, Any]
    explanation: list[dict[str, Any]] = field(default_factory=list)
    variants: tuple[Variant, ...] = ()
    runtime: str = ""


class Target(ABC):
    """The compiler's half of a target.

    Attributes:
        name: what stands before the colon on the command line.
        runtime: the dotted name of the runtime module. It must import neither TVM's compiler (``tvm``) nor onnx.
        runs_host: it runs control flow and the host's operators itself.
        groups_rows: it has a kernel for ``dlc.grouped_matmul`` and what belongs to it.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    runs_host: ClassVar[bool] = False
    groups_rows: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, spec: str) -> Target:
        """The target that `spec` (all of ``cpu:avx2``) means; DlcError on an unknown suffix."""

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return self.name

    @abstractmethod
    def passes(self, options: Options) -> list[Pass]:
        """The target's passes, run behind the common simplify and quantise passes."""

    def declines(self, node: Node) -> str | None:
        """Why the target does not run a node, so that the host does; None where it does.

        What only the host understands is declined here; a target that overrides this asks it for the rest.
        """
        if node.op == LOOP:
            return f"target {self.name} has no loops: each iteration is started by the host"
        if node.op == IF:
            return f"target {self.name} has no branches"
        if node.op in (STEPS, FIRST):
            return "how many results there are is in the data"
        return str(node.attrs["reason"]) if node.op == ONNX else None

    def compile(self, module: Any, context: Context) -> Build:
        """Turn the IRModule behind the common passes into package members.

        A target that takes only a part of a graph overrides this; see `dlc.composite`.
        """
        from dlc.pipeline import run_passes

        return self.build(run_passes(module, self.passes(context.options), context), context)

    @abstractmethod
    def build(self, module: Any, context: Context) -> Build:
        """Turn the rewritten IRModule into package members; DlcError names the node that cannot be built."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `dlc targets` shows: the hardware as this machine has it, JSON-able, and ``available`` (a bool)."""


class Executable(Protocol):
    """The runtime's half: a loaded model. Safe to call from several threads at once.

    Where extents of outputs depend on the data, it has ``compute(inputs, sizes) -> list of outputs`` in place of `run`
    and `output_shapes`.

    Optionally it has ``trace(inputs, sizes)``, an iterator over (explanation row, array): the value that each kernel
    computed, dequantised and in the layout of the ONNX value that ``row["value"]`` names, for `dlc check --per-node`.
    An array need only be valid until the next one is asked for.

    An executable that works on several calls at once has ``submit(inputs, outputs, sizes) -> Future``, which begins
    one, and ``depth``, the number of calls that keep it busy. One that holds processes or devices has ``close()``.
    """

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Compute. `inputs` are checked, C-contiguous and aligned; `outputs` are allocated and are written whole.

        Inputs and outputs come in the manifest's order; `sizes` is the extent of every symbol.
        """

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents, given the symbols' sizes."""

    def clone(self) -> Executable:
        """Another executable of the same model that shares the constants and has its own scratch memory."""


Trace = Iterator[tuple[dict[str, Any], np.ndarray]]


@functools.cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def target_names() -> Sequence[str]:
    """The names of all installed targets, sorted."""
    return sorted(_entry_points())


def find_target(spec: str) -> Target:
    """The target that `spec` names, such as ``cpu:avx2``.

    Raises:
        DlcError: there is no such target, it cannot be imported, or it does not know the suffix.
    """
    name = spec.partition(":")[0]
    entry = _entry_points().get(name)
    if entry is None:
        raise DlcError(f"unknown target '{spec}'; known: {', '.join(target_names())}")
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        raise DlcError(f"target '{name}' cannot be loaded: {error}") from error
    target: Target = cls.parse(spec)
    return target
