"""Check and time CUDA packages on a machine that has a GPU and nothing else: no TVM, no onnx, no nvcc, no installation.

    python bench/cuda_device.py prepare out/cuda --arch sm_90    # where dlc and nvcc are installed
    python bench/cuda_device.py run out/cuda                     # where the GPU is, with numpy and ml_dtypes

`prepare` compiles models and computes on the reference target what to expect. `run` loads the runtime from the source
tree, compares and times; wheels of numpy and ml_dtypes in ``out/cuda/wheels`` are used where they are not installed. It
exits with 1 where a result is not what is expected, and with 2 where it cannot begin.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = "cases.json"
NEEDED = ("numpy", "ml_dtypes")
CALLS, WARM = 50, 3


# --- where dlc is installed ---


def prepare(folder: Path, arch: str, parts: list[str]) -> None:
    """Compile each case for `arch`, and compute on the reference target what to expect."""
    import numpy as np

    import dlc

    sys.path.insert(0, str(ROOT))
    from tests.targets.gpu.cases import PARTS

    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for case in (case for part in parts for case in PARTS[part]()):
        dlc.compile(case.model, target=f"gpu:cuda,{arch}", **case.options).save(folder / f"{case.name}.dlc")
        outputs = dlc.load(dlc.compile(case.model, target="reference", **case.options)).run(case.inputs)
        arrays = {f"in:{name}": array for name, array in case.inputs.items()}
        np.savez_compressed(folder / f"{case.name}.npz", **arrays, **{f"out:{name}": a for name, a in outputs.items()})
        listed.append({"name": case.name, "rtol": case.rtol, "atol": case.atol, "batches": case.batches})
        print(case.name, flush=True)
    (folder / CASES).write_text(json.dumps(listed, indent=1) + "\n")


# --- where the GPU is ---


def _usable(name: str) -> bool:
    """Whether a library is there, and numpy not older than 2."""
    found = importlib.util.find_spec(name) is not None
    return found and not (name == "numpy" and importlib.metadata.version(name).startswith("1."))


def make_importable(wheels: Path, scratch: Path) -> list[str]:
    """Make dlc's source importable, and numpy and ml_dtypes from wheels where they lack; says what still lacks."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for name in NEEDED:
        if not _usable(name):
            for wheel in wheels.glob(f"{name}-*-{tag}-{tag}-*.whl"):
                zipfile.ZipFile(wheel).extractall(scratch)
    sys.path[:0] = [str(scratch), str(ROOT / "scripts")]
    from source_tree import link_into

    link_into(scratch)
    importlib.invalidate_caches()
    return [name for name in NEEDED if not _usable(name)]


def difference(actual: Any, expected: Any, case: dict[str, Any]) -> tuple[bool, str]:
    """Whether an output is what is expected, and how far it is off."""
    import numpy as np

    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False, f"is {actual.dtype}{list(actual.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if not case["rtol"] and not case["atol"]:
        wrong = int(np.sum((actual != expected) & ~((actual != actual) & (expected != expected))))
        return wrong == 0, f"{wrong} of {actual.size} elements differ"
    largest = float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0))
    fits = bool(np.allclose(actual, expected, rtol=case["rtol"], atol=case["atol"], equal_nan=True))
    return fits, f"largest difference {largest:.3g} (bound {case['rtol']:g}, {case['atol']:g})"


def timed(session: Any, inputs: dict[str, Any]) -> str:
    """Microseconds of a call with its copies, and of the kernels alone between two events; medians and least."""
    from dlc.runtime.session import bind_symbols

    executable, walls, kernels = session.executable, [], []
    device = executable.device
    sizes = bind_symbols(session.inputs, [inputs[info.name].shape for info in session.inputs])
    for call in range(WARM + CALLS):
        start = time.perf_counter()
        session.run(inputs)
        walls.append(time.perf_counter() - start)
        begin = device.record()
        executable.launch(sizes)
        kernels.append(device.elapsed(begin, device.record()))
        if call < WARM:
            walls, kernels = [], []
    wall, alone = statistics.median(walls) * 1e6, statistics.median(kernels) * 1e6
    return f"call {wall:.0f} us (least {min(walls) * 1e6:.0f}), kernels {alone:.0f} us (least {min(kernels) * 1e6:.0f})"


def run_case(folder: Path, case: dict[str, Any]) -> bool:
    """Load, compare, time; prints a line of each."""
    import numpy as np

    import dlc

    start = time.perf_counter()
    session = dlc.load(folder / f"{case['name']}.dlc")
    loaded = time.perf_counter() - start
    arrays = np.load(folder / f"{case['name']}.npz")
    inputs = {info.name: arrays[f"in:{info.name}"] for info in session.inputs}
    found = [difference(array, arrays[f"out:{name}"], case) for name, array in session.run(inputs).items()]
    passed = all(fits for fits, _ in found)
    image = session.executable.device.image  # type: ignore[attr-defined]
    texts = "; ".join(text for _, text in found)
    print(f"{'ok  ' if passed else 'FAIL'} {case['name']}: {texts}; {image} loaded in {loaded * 1e3:.0f} ms")
    for batch in case["batches"]:
        print(f"       batch {batch}: {timed(session, {name: a[:batch] for name, a in inputs.items()})}", flush=True)
    return passed


def run(folder: Path) -> int:
    """Run all cases; the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        lacking = make_importable(folder / "wheels", Path(scratch))
        print(f"Python {sys.version.split()[0]}", flush=True)
        if lacking:
            print(
                f"no {' and no '.join(lacking)} (numpy from 2.0), and no wheel for this Python in {folder / 'wheels'}"
            )
            return 2
        import numpy as np

        from dlc.errors import DlcError
        from dlc.targets.gpu.cuda import cuda_devices
        from dlc.targets.gpu.cuda_driver import Driver

        devices, reason = cuda_devices()
        print(f"numpy {np.__version__}; CUDA devices: {', '.join(devices) or reason}")
        if not devices:
            return 2
        print(f"driver: CUDA {Driver().version()}")
        failed = []
        for case in json.loads((folder / CASES).read_text()):
            try:
                if not run_case(folder, case):
                    failed.append(case["name"])
            except DlcError as error:
                print(f"FAIL {case['name']}: {error}", flush=True)
                failed.append(case["name"])
        print(f"failed: {', '.join(failed)}" if failed else "all as expected")
        return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.choices["prepare"].add_argument("--arch", default="sm_90")
    commands.choices["prepare"].add_argument(
        "parts", nargs="*", default=["vision", "kernels"], help="vision, kernels, resnet-fp32, resnet-int8"
    )
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(arguments.folder)
    prepare(arguments.folder, arguments.arch, arguments.parts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
