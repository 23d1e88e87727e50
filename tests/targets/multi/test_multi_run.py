"""Running on several processes: the same answers as one, whatever dies, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import dlc
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.package import Package
from dlc.targets.multi import cluster, runtime
from dlc.targets.multi.program import Plan
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs

ray = pytest.importorskip("ray")
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_inputs("test")[0]


@pytest.fixture(scope="module")
def int8() -> dict[str, Any]:
    return {"quantize": "int8", "arithmetic": "fixed", "calibration": {"image": load_inputs("calibration")[0]}}


@pytest.fixture(scope="module")
def expected(images: np.ndarray, int8: dict[str, Any]) -> np.ndarray:
    package = dlc.compile(model_path("vision"), target="reference", **int8)
    return dlc.load(package).run({"image": images})["logits"]


@pytest.fixture(scope="module", autouse=True)
def shared_cluster() -> Iterator[None]:
    """One Ray for the module, with more cores on paper than a small machine has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def session(int8: dict[str, Any]) -> Iterator[dlc.Session]:
    """zoo:vision in int8 on two stages."""
    with dlc.load(dlc.compile(model_path("vision"), target="multi:2xcpu", **int8)) as loaded:
        yield loaded


def crew(session: dlc.Session) -> cluster.Crew:
    executable: Any = session.executable
    found: cluster.Crew = executable._driver.crew
    return found


def pids(session: dlc.Session) -> list[int]:
    return [identity["pid"] for identity in crew(session).identities]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(numbers: list[int], seconds: float = 60.0) -> bool:
    """Whether all of these processes end in that time."""
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in numbers):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def micro_batches(images: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    return [{"image": images[i : i + size]} for i in range(0, len(images), size)]


def test_two_stages_equal_the_reference(session: dlc.Session, images: np.ndarray, expected: np.ndarray) -> None:
    assert len(set(pids(session)) | {os.getpid()}) == 3
    np.testing.assert_array_equal(session.run({"image": images})["logits"], expected)
    results = [result["logits"] for result in session.map(micro_batches(images, 4))]
    np.testing.assert_array_equal(np.concatenate(results), expected)


def test_threads_share_a_session(session: dlc.Session, images: np.ndarray, expected: np.ndarray) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        jobs = pool.map(lambda i: session.run({"image": images[i : i + 1]})["logits"], range(40))
        np.testing.assert_array_equal(np.concatenate(list(jobs)), expected[:40])


def test_outputs_in_given_memory(session: dlc.Session, images: np.ndarray, expected: np.ndarray) -> None:
    place = np.empty((2, 10), np.float32)
    assert session.run({"image": images[:2]}, {"logits": place})["logits"] is place
    np.testing.assert_array_equal(place, expected[:2])


def test_a_wrong_input_ends_a_stream_where_it_stands(session: dlc.Session, images: np.ndarray) -> None:
    results = session.map([{"image": images[:1]}, {"image": images[:1, :, :5]}])
    next(results)
    with pytest.raises(DlcError, match=r"input 'image' has shape \[1, 1, 5, 28\], expected \[N, 1, 28, 28\]"):
        next(results)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_dies_costs_no_answer(
    victim: int, session: dlc.Session, images: np.ndarray, expected: np.ndarray
) -> None:
    before, started = pids(session), time.monotonic()
    results = []
    for number, result in enumerate(session.map(micro_batches(images[:200], 1))):
        if number == 60:
            os.kill(before[victim], signal.SIGKILL)
        results.append(result["logits"])
    np.testing.assert_array_equal(np.concatenate(results), expected[:200])
    assert not set(before) & set(pids(session))
    assert time.monotonic() - started < 90, "noticed by the timeout of 120 s alone"


def test_the_command_line_streams_a_folder(
    int8: dict[str, Any], images: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    dlc.compile(model_path("vision"), target="multi:2xcpu,tensor", **int8).save(tmp_path / "m.dlc")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for i in range(5):
        np.savez(tmp_path / "in" / f"{i}.npz", image=images[i : i + 1])
    folders = ["--inputs", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["run", str(tmp_path / "m.dlc"), *folders])
    assert result.exit_code == 0, result.output
    for i in range(5):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / f"{i}.npz")["logits"], expected[i : i + 1])


def test_floats_agree_with_onnxruntime(images: np.ndarray) -> None:
    peer = onnxruntime.InferenceSession(str(model_path("vision")), providers=["CPUExecutionProvider"])
    logits = np.asarray(peer.run(None, {"image": images})[0])
    with dlc.load(dlc.compile(model_path("vision"), target="multi:3xcpu")) as several:
        assert len(set(pids(several))) == 3
        np.testing.assert_allclose(several.run({"image": images})["logits"], logits, rtol=0, atol=1e-3)


def test_a_worker_that_keeps_dying_is_named(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    monkeypatch.setattr(runtime, "_RESTARTS", 0)
    session = dlc.load(dlc.compile(model_path("vision"), target="multi:2xcpu"))
    number = pids(session)[1]
    results = session.map(micro_batches(images[:200], 1))
    next(results)
    os.kill(number, signal.SIGKILL)
    text = rf"<package>: target multi:2xcpu: worker 1 \(process {number} on [\d.]+\) failed 1 times without an answer"
    with pytest.raises(DlcError, match=text):
        list(results)
    with pytest.raises(DlcError, match=text):  # and it stays so
        session.run({"image": images[:1]})


def test_a_worker_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    monkeypatch.setenv(runtime.TIMEOUT, "40")
    session = dlc.load(dlc.compile(model_path("vision"), target="multi:2xcpu"))
    executable: Any = session.executable
    workers = pids(session)
    os.kill(workers[0], signal.SIGSTOP)
    where = r" \(process \d+ on [\d.]+\): "
    text = rf"no answer within 40 s \(DLC_WORKER_TIMEOUT\): worker 0{where}no reply; worker 1{where}waiting for"
    with pytest.raises(DlcError, match=text):
        session.run({"image": images[:1]})
    executable._driver.thread.join(30)
    assert gone(workers)


def test_a_worker_that_cannot_run_its_part(images: np.ndarray) -> None:
    made = dlc.compile(model_path("vision"), target="multi:2xreference")
    members = {name: made.member(name) for name in made.members}
    members["stage1/manifest.json"] = bytes(members["stage1/manifest.json"]).replace(
        b'"variants": []', b'"variants": [{"name": "v", "arch": "", "requires": ["magic"], "members": []}]'
    )
    text = (
        r"worker 1 \(process \d+ on [\d.]+\): stage1: this machine's CPU lacks features that the package needs: magic"
    )
    with pytest.raises(DlcError, match=text):
        dlc.load(Package.create(made.manifest, members))


def test_a_closed_session_leaves_no_worker(images: np.ndarray) -> None:
    session = dlc.load(dlc.compile(model_path("vision"), target="multi:2xreference"))
    workers = pids(session)
    assert all(alive(pid) for pid in workers)
    session.close()
    session.close()
    assert gone(workers)
    with pytest.raises(DlcError, match="target multi:2xreference: the session is closed"):
        session.run({"image": images[:1]})


def test_too_few_cores() -> None:
    package = dlc.compile(model_path("vision"), target="multi:7xreference")
    with pytest.raises(DlcError, match="<package>: target multi:7xreference needs 7 cores, one for each thread of each "
                       "worker; the Ray cluster has 6: compile for fewer, or name a Ray cluster"):  # fmt: skip
        dlc.load(package)


@pytest.mark.parametrize(("module", "text"), [
    ("ray", "target multi needs Ray to start its processes: install dlc[distributed]"),
    ("torch.distributed", "target multi needs torch to send tensors between processes: install dlc[distributed]"),
])  # fmt: skip
def test_what_is_not_installed_is_said(module: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = dlc.compile(model_path("vision"), target="multi:2xreference")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    assert str(caught.value) == text


def test_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dlc.compile(model_path("vision"), target="multi:2xreference")
    monkeypatch.setenv(runtime.TIMEOUT, "soon")
    with pytest.raises(DlcError, match="DLC_WORKER_TIMEOUT is 'soon', expected a number of seconds above 0"):
        dlc.load(made)
    members = {name: made.member(name) for name in made.members}
    with pytest.raises(DlcError, match="the manifest holds no plan of target multi: KeyError"):
        dlc.load(Package.create({**made.manifest, "build": {}}, members))
    assert Plan.from_json(made.manifest["build"]).as_json() == made.manifest["build"]


PROGRAM = """
import os, sys, dlc, numpy as np
session = dlc.load(sys.argv[1])
session.run({"image": np.zeros((1, 1, 28, 28), np.float32)})
tree = [int(p) for p in os.listdir("/proc") if p.isdigit()]
def parent(p):
    try: return int(open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[1])
    except OSError: return 0
parents = {p: parent(p) for p in tree}
ours, new = {os.getpid()}, True
while new:
    new = {p for p, q in parents.items() if q in ours} - ours
    ours |= new
print(*ours, flush=True)
assert sorted({"tvm", "onnx"} & set(sys.modules)) == []
if sys.argv[2] == "stay": input()
"""


@pytest.mark.parametrize("end", ["stay", "leave"])
def test_nothing_outlives_the_driver(end: str, tmp_path: Path) -> None:
    """A driver that is killed, or ends without closing its session, takes the workers and its own Ray with it."""
    dlc.compile(model_path("vision"), target="multi:2xreference").save(tmp_path / "m.dlc")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.dlc"), end]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    driver = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert driver.stdout is not None and driver.stderr is not None
    processes = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(processes) > 4, driver.stderr.read()  # the driver, two workers, Ray
    if end == "stay":
        driver.kill()
    driver.wait(60)
    assert gone([pid for pid in processes if pid != driver.pid])
    if end == "leave":
        assert driver.returncode == 0 and driver.stdout.read() == "" and driver.stderr.read() == ""
