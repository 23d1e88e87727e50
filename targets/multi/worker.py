"""A worker: holds the nested packages of its rank, and takes its steps for every input until the driver stops it.

Runs in a process that Ray started. Imports neither TVM's compiler nor onnx.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.execute import execute
from dlc.runtime.ffi import import_tvm_ffi
from dlc.runtime.session import Session
from dlc.targets.multi.program import DRIVER, Plan, Step
from dlc.targets.multi.transport import FOREVER, Group, LinkError

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
        broken = ""
        try:
            _Loop(group, rank, self._note).run()
        except LinkError as error:
            broken = str(error)
        finally:
            group.close()
        if broken:
            # Sends under way hold the connections that others wait on. They are in the frames of the first error, which
            # is in one of them itself.
            gc.collect()
            raise LinkError(broken)

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


class _Inbox:
    """Takes in what an input begins with while the one before is computed: its sizes and its first values.

    Gloo moves a message when both sides are ready; without this a worker would stand still for every transfer. The
    first receives of a program are from ranks that it does not receive from later (see `ahead`), because messages of
    one rank are told apart by their order alone.

    Attributes:
        waiting: what for, for messages.
    """

    def __init__(self, group: Group, plan: Plan, steps: Sequence[Step]) -> None:
        self.group, self.plan, self.steps = group, plan, steps
        self.waiting = "the driver"
        self._ready: queue.Queue[tuple[dict[str, int], dict[str, np.ndarray]] | BaseException | None] = queue.Queue(1)
        threading.Thread(target=self._fill, daemon=True).start()

    def take(self) -> tuple[dict[str, int], dict[str, np.ndarray]] | None:
        """(size of each symbol, values by name) of the next input; None when there is none. LinkError as `Group`."""
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _fill(self) -> None:
        try:
            while (header := self._header()) is not None:
                values = {}
                for step in self.steps:
                    for name in step.values:
                        values[name] = self.plan.values[name].empty(header)
                        if values[name].nbytes:
                            self.waiting = f"rank {step.peer}"
                            self.group.receive(values[name], step.peer)
                self._ready.put((header, values))
            self._ready.put(None)
        except BaseException as error:  # the main thread raises it
            self._ready.put(error)

    def _header(self) -> dict[str, int] | None:
        self.waiting = "the driver"
        header = np.empty(1 + len(self.plan.symbols), np.int64)
        self.group.receive(header, DRIVER)
        if header[0] == STOP:
            return None
        return {name: int(size) for name, size in zip(self.plan.symbols, header[1:], strict=True)}


def ahead(steps: Sequence[Step]) -> int:
    """How many of a program's steps are receives that can be done while the input before is computed."""
    count = next((i for i, step in enumerate(steps) if step.do != "receive"), len(steps))
    later = {step.peer for step in steps[count:] if step.do == "receive"}
    return next((i for i, step in enumerate(steps[:count]) if step.peer in later), count)


class _Loop:
    """The worker's steps, input after input."""

    def __init__(self, group: Group, rank: int, note: Callable[[str], None]) -> None:
        self.group, self.note = group, note
        note("receiving its packages")
        self.plan, self.sessions = _receive_packages(group)
        steps = self.plan.programs[rank]
        self.first, self.steps = steps[: ahead(steps)], steps[ahead(steps) :]
        self.group.wait(self.group.send(np.ones(1, np.int64), DRIVER))  # loaded: the driver may begin

    def run(self) -> None:
        """Until the driver's header says stop. The sends of one input are waited for behind the next input."""
        inbox = _Inbox(self.group, self.plan, self.first)
        earlier: list[Any] = []
        while True:
            self.note(f"waiting for {inbox.waiting}")
            taken = inbox.take()
            if taken is None:
                break
            current = self.one(*taken)
            self._finish(earlier)
            earlier = current
        self._finish(earlier)

    def _finish(self, sends: list[Any]) -> None:
        for work, _ in sends:
            self.group.wait(work)

    def one(self, sizes: Mapping[str, int], values: dict[str, np.ndarray]) -> list[Any]:
        """The steps for one input, from its first values on; returns the sends that may be under way, each with the
        array that it reads.
        """
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
        def allocated(sizes: Mapping[str, int]) -> list[np.ndarray]:
            return [self.plan.values[name].empty(sizes) for name in step.outputs]

        outputs = execute(self.sessions[step.package].executable, inputs, sizes, allocated)
        # Where some of the stage runs on the host, a result may be strided.
        return [np.require(array, requirements=["C", "A"]) for array in outputs]
