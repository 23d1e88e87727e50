"""A worker: holds the nested packages of its rank, and takes its steps for every input until the driver stops it.

Runs in a process that Ray started. Imports neither TVM's compiler nor onnx.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.ffi import import_tvm_ffi
from dlc.runtime.session import Session
from dlc.targets.multi.program import DRIVER, Plan, Step
from dlc.targets.multi.transport import FOREVER, Group

STOP = -1


class Worker:
    """What Ray runs in each process, as an actor."""

    def __init__(self) -> None:
        self._state = "starting"

    def identity(self) -> dict[str, Any]:
        """The process's number and its node's address."""
        import ray

        return {"pid": os.getpid(), "host": ray.util.get_node_ip_address()}

    def state(self) -> str:
        """What the worker is doing, for messages."""
        return self._state

    def serve(self, store: tuple[str, int], rank: int, world: int, host: str) -> None:
        """Join the group and work until the driver says stop; LinkError when a peer is gone."""
        # Before torch: tvm_ffi looks for torch when it is imported, and would build a converter for it.
        import_tvm_ffi()
        group = Group((store[0], store[1]), rank, world, host, FOREVER)
        try:
            _Loop(group, rank, self._note).run()
        finally:
            group.close()

    def _note(self, text: str) -> None:
        self._state = text


def send_packages(group: Group, peer: int, plan: Plan, packages: Mapping[str, Package], threads: int) -> None:
    """The driver's half of `_receive_packages`: what worker `peer` runs, weights included."""
    chosen = plan.packages(peer)
    listing = [{"name": n, "manifest": packages[n].manifest, "members": packages[n].members} for n in chosen]
    group.send_json({"plan": plan.as_json(), "packages": listing, "threads": threads}, peer)
    for name in chosen:
        for member in packages[name].members:
            group.send_blob(packages[name].member(member), peer)


def _receive_packages(group: Group) -> tuple[Plan, dict[str, Session]]:
    record = group.receive_json(DRIVER)
    sessions = {}
    for entry in record["packages"]:
        members = {name: memoryview(group.receive_blob(DRIVER).data).toreadonly() for name in entry["members"]}
        sessions[entry["name"]] = Session(Package(entry["manifest"], members, entry["name"]), record["threads"])
    return Plan.from_json(record["plan"]), sessions


class _Loop:
    """The worker's steps, input after input."""

    def __init__(self, group: Group, rank: int, note: Callable[[str], None]) -> None:
        self.group, self.note = group, note
        note("receiving its packages")
        self.plan, self.sessions = _receive_packages(group)
        self.steps = self.plan.programs[rank]
        self.group.wait(self.group.send(np.ones(1, np.int64), DRIVER))  # loaded: the driver may begin

    def run(self) -> None:
        """Until the driver's header says stop. The sends of one input are waited for behind the next input."""
        header = np.empty(1 + len(self.plan.symbols), np.int64)
        earlier: list[Any] = []
        while True:
            self.note("waiting for the driver")
            self.group.receive(header, DRIVER)
            if header[0] == STOP:
                break
            sizes = {name: int(size) for name, size in zip(self.plan.symbols, header[1:], strict=True)}
            current = self.one(sizes)
            self._finish(earlier)
            earlier = current
        self._finish(earlier)

    def _finish(self, sends: list[Any]) -> None:
        for work, _ in sends:
            self.group.wait(work)

    def one(self, sizes: Mapping[str, int]) -> list[Any]:
        """The steps for one input; returns the sends that may be under way, each with the array that it reads."""
        values: dict[str, np.ndarray] = {}
        sends: list[Any] = []
        for step in self.steps:
            if step.do == "run":
                self.note(f"running {step.package}")
                outputs = self._run(step, [values[name] for name in step.inputs], sizes)
                values.update(zip(step.outputs, outputs, strict=True))
                continue
            for name in step.values:
                if not self.plan.values[name].nbytes(sizes):
                    values.setdefault(name, self.plan.values[name].empty(sizes))
                elif step.do == "send":
                    sends.append((self.group.send(values[name], step.peer), values[name]))
                else:
                    self.note(f"waiting for rank {step.peer}")
                    values[name] = self.group.receive(self.plan.values[name].empty(sizes), step.peer)
        return sends

    def _run(self, step: Step, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        executable = self.sessions[step.package].executable
        compute = getattr(executable, "compute", None)
        if compute is not None:  # some of the stage runs on the host
            return [np.require(array, requirements=["C", "A"]) for array in compute(inputs, sizes)]
        outputs = [self.plan.values[name].empty(sizes) for name in step.outputs]
        executable.run(inputs, outputs, sizes)
        return outputs
