"""Ray: a cluster on demand, and the processes that it starts, watches and starts again.

A Ray that the program has initialised, or that ``RAY_ADDRESS`` names, is used as it is. Otherwise a cluster of this
machine alone is started with the first session and ended with the last: no dashboard, no usage reports, no log on the
terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from dlc.errors import DlcError
from dlc.hardware import this_machine
from dlc.targets.multi.reaper import Reaper

_STORE_BYTES = 80 << 20  # of Ray's object store, which no tensor goes through; near the least that Ray takes
_FREE_SECONDS = 15.0  # Ray counts the cores of workers that have just ended as taken for a moment
_BEGIN_SECONDS = 120.0

_log = logging.getLogger("dlc")
_lock = threading.Lock()
_users = 0
_owned = False
_reaper: Reaper | None = None


def require_ray() -> Any:
    """The module ``ray``; DlcError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray announces this change at every start
    try:
        import ray
    except ImportError:
        raise DlcError("target multi needs Ray to start its processes: install dlc[distributed]") from None
    return ray


def join(cores: int, label: str) -> None:
    """Connect to Ray for one session, which `leave`s it later.

    Args:
        cores: how many the session needs.
        label: what needs them, for the error.

    Raises:
        DlcError: Ray is not installed, cannot be started, or has too few cores.
    """
    global _users, _owned, _reaper
    ray = require_ray()
    with _lock:
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            if not address:
                _check_cores(cores, this_machine().cores, label, "this machine has")
            _start(ray, address)
            _owned = True
            _reaper = Reaper() if not address else None
        _users += 1
    try:
        _check_cores(cores, int(ray.cluster_resources().get("CPU", 0)), label, "the Ray cluster has")
        _wait_until_free(ray, cores, label)
    except BaseException:
        leave()
        raise


def leave() -> None:
    """A session is done with Ray; the last one ends a cluster that was started here."""
    global _users, _owned, _reaper
    with _lock:
        _users -= 1
        if _users == 0 and _owned:
            _owned = False
            require_ray().shutdown()
            if _reaper is not None:
                _reaper.finish()
                _reaper = None


def _check_cores(cores: int, there: int, label: str, where: str) -> None:
    if cores > there:
        hint = "compile for fewer, or name a Ray cluster that has more in RAY_ADDRESS"
        raise DlcError(f"{label} needs {cores} cores, one for each thread of each worker; {where} {there}: {hint}")


def _wait_until_free(ray: Any, cores: int, label: str) -> None:
    until = time.monotonic() + _FREE_SECONDS
    while (free := int(ray.available_resources().get("CPU", 0))) < cores:
        if time.monotonic() > until:
            raise DlcError(f"{label} needs {cores} cores, and {free} are free: close another session")
        time.sleep(0.1)


def _start(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
            return
        cores = this_machine().cores
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
        # Ray prints the death of a worker on stdout, which belongs to the program; there is no option against it.
        ray._private.worker.print_to_stdstream = lambda data, *_, **__: _log.info("%s", " ".join(data["lines"]))
    except Exception as error:  # Ray raises half a dozen types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DlcError(f"target multi cannot start or reach Ray: {reason}") from error


class Crew:
    """The workers of one session: started, named, restarted and ended by Ray."""

    def __init__(self, count: int, threads: int) -> None:
        self._ray = require_ray()
        from dlc.targets.multi.worker import Worker

        # Two calls at once: `serve` lasts as long as the session, and `state` must be answered beside it.
        options = {"num_cpus": threads, "max_restarts": -1, "max_concurrency": 2, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(**options)(Worker)
        self._actors = [actor.remote() for _ in range(count)]
        self._serving: list[Any] = []
        self._ended: set[Any] = set()  # the processes of the workers before the last restart
        self.identities: list[dict[str, Any]] = [{} for _ in range(count)]

    @property
    def host(self) -> str:
        """The address of the driver's node."""
        return str(self._ray.util.get_node_ip_address())

    def serve(self, store: tuple[str, int]) -> None:
        """Have every worker join the group at `store`; DlcError when Ray does not start one of them."""
        until = time.monotonic() + _BEGIN_SECONDS
        world = len(self._actors) + 1
        self.identities = [self._identity(number, until) for number in range(len(self._actors))]
        self._serving = [
            actor.serve.remote(store, number + 1, world, identity["host"])
            for number, (actor, identity) in enumerate(zip(self._actors, self.identities, strict=True))
        ]

    def _identity(self, number: int, until: float) -> dict[str, Any]:
        while True:
            try:
                found: dict[str, Any] = self._ray.get(self._actors[number].identity.remote(), timeout=_BEGIN_SECONDS)
                # A process that was ended a moment ago may still answer.
                if found["pid"] not in self._ended or time.monotonic() > until:
                    return found
                time.sleep(0.1)
            except self._ray.exceptions.RayError as error:
                # A worker that is being started again is unavailable for a moment.
                if time.monotonic() > until or isinstance(error, self._ray.exceptions.ActorDiedError):
                    raise DlcError(f"Ray does not start worker {number} of target multi: {_first(error)}") from error
                time.sleep(0.1)

    def name(self, number: int) -> str:
        """A worker as messages call it."""
        identity = self.identities[number]
        return f"worker {number} (process {identity.get('pid', '?')} on {identity.get('host', '?')})"

    def endings(self, seconds: float) -> dict[int, Exception | None]:
        """The workers whose `serve` has ended within `seconds`: what it raised, or None where it returned.

        Those that have not are stuck: when one dies, or the driver leaves the group, the others notice it at once.
        """
        done, _ = self._ray.wait(self._serving, num_returns=len(self._serving), timeout=seconds)
        found: dict[int, Exception | None] = {}
        for number, reference in enumerate(self._serving):
            if reference not in done:
                continue
            try:
                self._ray.get(reference)
                found[number] = None
            except Exception as error:  # whatever the worker raised comes through
                found[number] = error
        return found

    def died(self, error: Exception | None) -> bool:
        """Whether an ending is that of the process, not of what it ran."""
        return isinstance(error, self._ray.exceptions.RayError) and not isinstance(
            error, self._ray.exceptions.RayTaskError
        )

    def states(self) -> list[str]:
        """What each worker says that it is doing; "no reply" where it says nothing for a second."""
        asked = [actor.state.remote() for actor in self._actors]
        done, _ = self._ray.wait(asked, num_returns=len(asked), timeout=1.0)
        return [str(self._ray.get(a)) if a in done else "no reply" for a in asked]

    def restart(self) -> None:
        """End every worker that lives, so that Ray starts all of them again."""
        self._ended = {identity.get("pid") for identity in self.identities}
        self._kill(no_restart=False)

    def dismiss(self) -> None:
        """End the workers for good."""
        self._kill(no_restart=True)

    def _kill(self, no_restart: bool) -> None:
        if not self._ray.is_initialized():  # it is gone already, and its processes with it; a call would start it anew
            return
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor, no_restart=no_restart)


def _first(error: BaseException) -> str:
    lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
