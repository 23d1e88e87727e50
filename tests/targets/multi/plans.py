"""Takes the steps of a plan in one process, without Ray and gloo: the meaning of a multi package."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.session import Session, TensorInfo, bind_symbols
from dlc.targets.multi.program import DRIVER, Plan


def simulate(package: Package, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a multi package, by name; fails where a rank waits for what nobody sends."""
    plan = Plan.from_json(package.manifest["build"])
    session_inputs = package.manifest["inputs"]
    names = {name for rank in range(1, plan.workers + 1) for name in plan.packages(rank)}
    sessions = {name: Session(package.nested(name)) for name in names}
    infos = [TensorInfo(r["name"], tuple(r["shape"]), r["dtype"]) for r in session_inputs]
    sizes = bind_symbols(infos, [inputs[info.name].shape for info in infos])
    values: list[dict[str, np.ndarray]] = [{} for _ in plan.programs]
    for name, record in zip(plan.inputs, session_inputs, strict=True):
        values[DRIVER][name] = inputs[record["name"]]
    links: dict[tuple[int, int], deque[Any]] = {}
    todo = [deque(program) for program in plan.programs]
    while any(todo):
        moved = False
        for rank, steps in enumerate(todo):
            while steps and _take(steps[0], rank, values[rank], links, sessions, plan, sizes):
                steps.popleft()
                moved = True
        assert moved, f"every rank waits: {[steps[0] for steps in todo if steps]}"
    assert not any(links.values()), "something was sent that nobody receives"
    named = zip(package.manifest["outputs"], plan.outputs, strict=True)
    return {record["name"]: values[DRIVER][name] for record, name in named}


def _take(
    step: Any,
    rank: int,
    values: dict[str, np.ndarray],
    links: dict[tuple[int, int], deque[Any]],
    sessions: Mapping[str, Session],
    plan: Plan,
    sizes: Mapping[str, int],
) -> bool:
    """One step; False where it has to wait."""
    if step.do == "send":
        links.setdefault((rank, step.peer), deque()).extend((name, values[name]) for name in step.values)
    elif step.do == "receive":
        waiting = links.setdefault((step.peer, rank), deque())
        if len(waiting) < len(step.values):
            return False
        for wanted in step.values:
            name, array = waiting.popleft()
            place = plan.values[wanted].empty(sizes)
            assert name == wanted and array.shape == place.shape and array.dtype == place.dtype
            values[name] = array
    else:
        session = sessions[step.package]
        given = {info.name: values[name] for info, name in zip(session.inputs, step.inputs, strict=True)}
        results = session.run(given)
        for info, name in zip(session.outputs, step.outputs, strict=True):
            values[name] = np.ascontiguousarray(results[info.name])
    return True
