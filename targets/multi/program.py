"""What each process does for one input: a list of steps, the same for every input. JSON-able; imports no TVM.

Rank 0 is the driver (the process that loaded the package), worker *i* is rank *i* + 1. For every input the driver first
tells each worker the sizes of the symbols, then each rank takes its steps in order. Sends do not block, so steps of
different inputs overlap, and ranks that exchange values may all send first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from dlc.ir.interpret import evaluate_dim

DRIVER = 0


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        do: ``send`` or ``receive`` values, or ``run`` a nested package.
        peer: the other rank of a send or receive.
        values: what is sent or received, in order.
        package: which nested package runs.
        inputs, outputs: the values that it reads and makes, in its own order.
    """

    do: Literal["send", "receive", "run"]
    peer: int = -1
    values: tuple[str, ...] = ()
    package: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without the fields that do not apply."""
        given = {key: value for key, value in asdict(self).items() if value not in (-1, (), "")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Step:
        """What `as_json` wrote."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Tensor:
    """The extents (ints, or arithmetic on symbols) and dtype of a value that travels."""

    shape: tuple[int | str, ...]
    dtype: str

    def empty(self, sizes: Mapping[str, int]) -> np.ndarray:
        """Memory for it."""
        return np.empty(tuple(evaluate_dim(d, sizes) for d in self.shape), np.dtype(self.dtype))

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Its size in bytes."""
        return prod(evaluate_dim(d, sizes) for d in self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Plan:
    """The whole of it, as it stands in the manifest under ``build``.

    Attributes:
        form: ``pipeline`` or ``tensor``.
        symbols: names of the symbolic extents, in the order in which their sizes are sent.
        inputs, outputs: the model's inputs and outputs as values, in the manifest's order.
        values: every value that travels.
        programs: the steps of each rank, the driver's first.
        stages: predictions for each worker: ``predicted_us``, ``weights``, ``activations`` (bytes).
    """

    form: Literal["pipeline", "tensor"]
    symbols: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Tensor]
    programs: tuple[tuple[Step, ...], ...]
    stages: tuple[Mapping[str, Any], ...] = ()

    @property
    def workers(self) -> int:
        """How many processes beside the driver."""
        return len(self.programs) - 1

    def packages(self, rank: int) -> list[str]:
        """The nested packages that a rank runs, once each."""
        return list(dict.fromkeys(step.package for step in self.programs[rank] if step.do == "run"))

    def as_json(self) -> dict[str, Any]:
        """For the manifest, and for the workers."""
        return {
            "form": self.form,
            "symbols": list(self.symbols),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "values": {name: [list(t.shape), t.dtype] for name, t in sorted(self.values.items())},
            "programs": [[step.as_json() for step in program] for program in self.programs],
            "stages": [dict(stage) for stage in self.stages],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Plan:
        """What `as_json` wrote; KeyError or TypeError where it is not that."""
        return cls(
            record["form"],
            tuple(record["symbols"]),
            tuple(record["inputs"]),
            tuple(record["outputs"]),
            {name: Tensor(tuple(shape), dtype) for name, (shape, dtype) in record["values"].items()},
            tuple(tuple(Step.from_json(s) for s in program) for program in record["programs"]),
            tuple(record["stages"]),
        )


@dataclass(frozen=True)
class Division:
    """A model in parts.

    Attributes:
        modules: the IRModule of each nested package, by name.
        plan: who runs which, and sends what to whom.
        explain: (nested package, row of its explanation) -> what the row says besides, such as the stage and its
            predicted time; None where the row only repeats that of another worker.
    """

    modules: Mapping[str, Any]
    plan: Plan
    explain: Callable[[str, Mapping[str, Any]], dict[str, Any] | None]


def sends_and_receives(
    made_on: Mapping[str, int], read_on: Mapping[str, Sequence[int]], rank: int
) -> tuple[list[Step], list[Step]]:
    """The receives in front of a rank's work and the sends behind it, in a pipeline.

    Args:
        made_on: the rank that makes each value that travels.
        read_on: the ranks that read it.
        rank: whose steps.

    Returns:
        (receives, sends): one step a peer, peers in order, values in the order of `made_on`.
    """
    receives: dict[int, list[str]] = {}
    sends: dict[int, list[str]] = {}
    for name, maker in made_on.items():
        for reader in read_on[name]:
            if reader == rank != maker:
                receives.setdefault(maker, []).append(name)
            if maker == rank != reader:
                sends.setdefault(reader, []).append(name)
    return (
        [Step("receive", peer, tuple(names)) for peer, names in sorted(receives.items())],
        [Step("send", peer, tuple(names)) for peer, names in sorted(sends.items())],
    )
