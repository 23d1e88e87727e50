"""Runs multi packages: the driver of worker processes that Ray starts and gloo connects. Imports neither TVM nor onnx.

A session's calls go into one queue. One thread hands them out, several at a time so that every worker is busy, and
collects the answers in order. When a worker dies, all are started again and what has no answer yet is sent again:
a call ends in its right answer or in an error, never in a wrong one.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.interpret import evaluate_dim
from dlc.package import Package
from dlc.targets.multi import cluster
from dlc.targets.multi.program import DRIVER, Plan
from dlc.targets.multi.transport import Group, LinkError, listen, require_torch
from dlc.targets.multi.worker import STOP, send_packages

TIMEOUT = "DLC_WORKER_TIMEOUT"  # seconds without an answer after which a worker is taken for stuck
_TIMEOUT_SECONDS = 120.0
_RESTARTS = 3  # of the workers, without an answer in between
_CLOSE_SECONDS = 10.0


@dataclass
class _Request:
    """One call: its arrays, and what becomes of it."""

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    sizes: Mapping[str, int]
    future: Future[None] = field(default_factory=Future)
    sends: list[Any] | None = None  # under way; None: not sent, or to be sent again


class _Driver:
    """The thread that feeds the workers, and all that it owns."""

    def __init__(self, plan: Plan, packages: Mapping[str, Package], threads: int, label: str) -> None:
        self.plan, self.packages, self.threads, self.label = plan, packages, threads, label
        self.window = 2 * plan.workers
        self.timeout = _timeout()
        self.queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self.failure: DlcError | None = None
        self.failures = 0
        self.group: Group | None = None
        self._lock = threading.Lock()
        self._closed = False
        require_torch()
        cluster.join(plan.workers * threads, label)
        try:
            self.crew = cluster.Crew(plan.workers, threads)
            self._connect_or_restart()
        except BaseException:
            self._give_up()
            raise
        self.thread = threading.Thread(target=self._work, name="dlc multi", daemon=True)
        self.thread.start()

    # --- what callers use ---

    def submit(self, request: _Request) -> None:
        """Queue a call."""
        with self._lock:
            if self._closed:
                raise self.failure or DlcError(f"{self.label}: the session is closed")
            self.queue.put(request)

    def close(self) -> None:
        """End the workers; calls under way end in an error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.queue.put(None)
        self.thread.join(_CLOSE_SECONDS if self.failure is None else 0)
        self._give_up()
        self.thread.join(_CLOSE_SECONDS)

    def _give_up(self) -> None:
        if hasattr(self, "crew"):
            self.crew.dismiss()
        if self.group is not None:
            self.group.close()
        cluster.leave()

    # --- the thread ---

    def _work(self) -> None:
        flight: deque[_Request] = deque()
        try:
            while self._fill(flight):
                try:
                    for request in flight:
                        if request.sends is None:
                            self._send(request)
                    self._receive(flight[0])
                except LinkError as error:
                    self._recover(error)
                    for request in flight:
                        request.sends = None
                    continue
                self.failures = 0
                flight.popleft().future.set_result(None)
            self._stop()
        except Exception as error:
            self._fail(error, flight)

    def _fill(self, flight: deque[_Request]) -> bool:
        """Take calls from the queue while there is room, waiting only when none is in flight; False at the end."""
        while len(flight) < self.window:
            try:
                request = self.queue.get(block=not flight)
            except queue.Empty:
                break
            if request is None:
                for left in flight:
                    left.future.set_exception(DlcError(f"{self.label}: the session was closed during a call"))
                return False
            flight.append(request)
        return True

    def _send(self, request: _Request) -> None:
        group = self._group()
        header = np.array([0, *(request.sizes[name] for name in self.plan.symbols)], np.int64)
        request.sends = [(group.send(header, rank + 1), header) for rank in range(self.plan.workers)]
        values = dict(zip(self.plan.inputs, request.inputs, strict=True))
        for step in self.plan.programs[DRIVER]:
            if step.do == "send":
                sent = [values[name] for name in step.values if values[name].nbytes]
                request.sends += [(group.send(array, step.peer), array) for array in map(_writable, sent)]

    def _receive(self, request: _Request) -> None:
        group = self._group()
        places = dict(zip(self.plan.outputs, request.outputs, strict=True))
        for step in self.plan.programs[DRIVER]:
            for name in step.values if step.do == "receive" else ():
                if places[name].nbytes:
                    group.receive(places[name], step.peer)
        for work, _ in request.sends or ():
            group.wait(work)
        values = dict(zip(self.plan.inputs, request.inputs, strict=True)) | places
        for name, output in zip(self.plan.outputs, request.outputs, strict=True):
            if output is not values[name]:  # an output that is an input, or that stands there twice
                np.copyto(output, values[name])

    def _group(self) -> Group:
        if self.group is None:
            raise LinkError("not connected")
        return self.group

    def _stop(self) -> None:
        header = np.full(1 + len(self.plan.symbols), STOP, np.int64)
        try:
            for work in [self._group().send(header, rank + 1) for rank in range(self.plan.workers)]:
                self._group().wait(work)
        except LinkError:
            pass  # they are ended in any case

    # --- connecting, and connecting again ---

    def _connect(self) -> None:
        """Start the group and give every worker its packages."""
        listener = listen(self.crew.host)
        store = (self.crew.host, listener.getsockname()[1])
        self.crew.serve(store)
        timeout = timedelta(seconds=self.timeout)
        self.group = Group(store, DRIVER, self.plan.workers + 1, self.crew.host, timeout, listener)
        for rank in range(1, self.plan.workers + 1):
            send_packages(self.group, rank, self.plan, self.packages, self.threads)
        for rank in range(1, self.plan.workers + 1):
            self.group.receive(np.empty(1, np.int64), rank)

    def _connect_or_restart(self) -> None:
        while True:
            try:
                return self._connect()
            except LinkError as error:
                self._judge(error)
                self.crew.restart()

    def _recover(self, error: LinkError) -> None:
        self._judge(error)
        self.crew.restart()
        self._connect_or_restart()

    def _judge(self, error: LinkError) -> None:
        """Whether to go on after a broken link; DlcError that names the worker where not."""
        if self._closed:
            raise DlcError(f"{self.label}: the session was closed during a call")
        if self.group is not None:
            self.group.close()
            self.group = None
        endings = self.crew.endings(seconds=5.0)
        for number, ending in endings.items():
            cause = getattr(ending, "cause", None)
            if ending is not None and not self.crew.died(ending) and not isinstance(cause, LinkError):
                raise DlcError(f"{self.label}: {self.crew.name(number)}: {cause or ending}") from ending
        dead = [number for number, ending in endings.items() if self.crew.died(ending)]
        if not dead and len(endings) < self.plan.workers:
            states = "; ".join(f"{self.crew.name(n)}: {s}" for n, s in enumerate(self.crew.states()))
            raise DlcError(f"{self.label}: no answer within {self.timeout:g} s ({TIMEOUT}): {states}") from error
        self.failures += 1
        if self.failures > _RESTARTS:
            names = ", ".join(self.crew.name(number) for number in dead) or "the connection of the workers"
            raise DlcError(
                f"{self.label}: {names} failed {self.failures} times without an answer in between"
            ) from error

    def _fail(self, error: Exception, flight: deque[_Request]) -> None:
        """End every call with `error`, and the workers."""
        text = str(error) if isinstance(error, DlcError) else f"{self.label}: {error!r}"
        with self._lock:
            self.failure = DlcError(text)
            already, self._closed = self._closed, True
        while not self.queue.empty():
            request = self.queue.get()
            if request is not None:
                flight.append(request)
        for request in flight:
            if not request.future.done():
                request.future.set_exception(DlcError(text))
        if not already:
            self._give_up()


def _writable(array: np.ndarray) -> np.ndarray:
    """torch warns of memory that it may not write to, though it only reads here."""
    return array if array.flags.writeable else array.copy()


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else _TIMEOUT_SECONDS
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise DlcError(f"{TIMEOUT} is '{text}', expected a number of seconds above 0")
    return seconds


class MultiExecutable:
    """A model spread over processes. Safe to call from several threads: calls are queued and overlap.

    Attributes:
        depth: how many calls under way keep every worker busy.
    """

    def __init__(self, package: Package, plan: Plan, packages: Mapping[str, Package], threads: int) -> None:
        label = f"{package.name}: target {package.manifest.get('target', 'multi')}"
        values = {name: tensor.shape for name, tensor in plan.values.items()}
        values |= {n: tuple(i["shape"]) for n, i in zip(plan.inputs, package.manifest["inputs"], strict=True)}
        self._shapes = [values[name] for name in plan.outputs]
        self._driver = _Driver(plan, packages, threads, label)
        self.depth = self._driver.window
        # Also at exit: the workers end with the driver's process in any case, but then noisily.
        self._finalizer = weakref.finalize(self, self._driver.close)

    def submit(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> Future[None]:
        """Begin a call; the future is done when `outputs` are written, until when no array may change.

        Raises:
            DlcError: the session is closed; the future raises it when a worker fails.
        """
        request = _Request(inputs, outputs, sizes)
        self._driver.submit(request)
        return request.future

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """One call from end to end; see `dlc.targets.base.Executable`."""
        self.submit(inputs, outputs, sizes).result()

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents."""
        return [tuple(evaluate_dim(d, sizes) for d in shape) for shape in self._shapes]

    def clone(self) -> MultiExecutable:
        """The executable itself: calls share nothing that they write."""
        return self

    def close(self) -> None:
        """End the workers. Calls that are under way end in an error."""
        self._finalizer()


def load(package: Package, threads: int) -> MultiExecutable:
    """Start the workers of a package, each with `threads` threads.

    Raises:
        DlcError: Ray or torch is not installed, there are too few cores, a worker cannot be started or cannot run its
            part, or the package holds no plan.
    """
    try:
        plan = Plan.from_json(package.manifest["build"])
    except (KeyError, TypeError, ValueError) as error:
        raise DlcError(f"{package.name}: the manifest holds no plan of target multi: {error!r}") from error
    names = {name for rank in range(1, plan.workers + 1) for name in plan.packages(rank)}
    return MultiExecutable(package, plan, {name: package.nested(name) for name in sorted(names)}, threads)
