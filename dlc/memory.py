"""Peak memory of compiling and of running, each in a fresh process of its own: what the whole process ever held.

``python -m dlc.memory JOB``, a job in JSON, is that process; it prints the bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import DlcError

_RUNS = 3


def running(engine: str, model: Path, inputs: Mapping[str, np.ndarray], threads: int = 1) -> int:
    """Bytes of a process that loads a model and runs it a few times.

    Args:
        engine: ``dlc``, and `model` is a package; or a runtime that `dlc.bench` knows, and it is an ONNX file.

    Raises:
        DlcError: the process failed; says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, *inputs.values())
        job = {"do": engine, "model": str(model), "names": list(inputs), "inputs": str(path), "threads": threads}
        return _peak(job)


def compiling(model: Path, options: Mapping[str, Any]) -> int:
    """Bytes of a process that compiles a model, not from the cache.

    Args:
        options: as a manifest has them; random inputs stand for the calibration data of ``int8``, which it has not.

    Raises:
        DlcError: the process failed; says how.
    """
    return _peak({"do": "compile", "model": str(model), "options": dict(options)})


def _peak(job: Mapping[str, Any]) -> int:
    done = subprocess.run([sys.executable, "-m", __name__, json.dumps(job)], capture_output=True, text=True)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise DlcError(f"{job['model']}: peak memory of {job['do']}: {lines[-1] if lines else 'no answer'}")
    return int(lines[-1])


# --- the process -----------------------------------------------------------------------------------------------------


def _held() -> int:
    """The most bytes of memory that this process ever held."""
    try:  # of this program alone: what getrusage says begins with what the process was before it
        text = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _compile(job: Mapping[str, Any]) -> None:
    import dlc

    options = job["options"]
    dlc.compile(job["model"], calibration="random" if options["quantize"] == "int8" else None, cache=False, **options)


def _run(job: Mapping[str, Any]) -> None:
    with np.load(job["inputs"]) as file:
        inputs = {name: file[f"arr_{i}"] for i, name in enumerate(job["names"])}
    run: Callable[[], object]
    if job["do"] == "dlc":
        import dlc

        session = dlc.load(job["model"], job["threads"])
        run = lambda: session.run(inputs)  # noqa: E731
    else:
        from dlc.bench import peer

        run = peer(job["do"], Path(job["model"]), inputs, job["threads"])[1]
    for _ in range(_RUNS):
        run()


if __name__ == "__main__":
    _job = json.loads(sys.argv[1])
    _compile(_job) if _job["do"] == "compile" else _run(_job)
    print(_held())
