"""Runs a worker for a time, starts it again where it dies or hangs, and keeps what was found."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CASES = 400  # by one process
_MOST_STORED = 25
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """What one fuzzer did."""

    kind: str
    cases: int = 0
    unjudged: int = 0
    findings: list[str] = field(default_factory=list)
    stored: list[Path] = field(default_factory=list)


class Watch:
    """One fuzzer: a worker process at a time."""

    def __init__(self, kind: str, seed: int, seconds: float, limit: float, store: Path) -> None:
        self.result = Result(kind)
        self.next, self.end, self.limit, self.store = seed, time.monotonic() + seconds, limit, store

    def run(self) -> Result:
        """Until the time is over."""
        with tempfile.TemporaryDirectory(prefix="dlc-fuzz-") as folder:
            while time.monotonic() < self.end:
                self._process(Path(folder))
        return self.result

    def _process(self, folder: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.worker",
            self.result.kind,
            str(self.next),
            str(_CASES),
            str(folder),
        ]
        log = folder / "stderr"
        with log.open("wb") as errors:
            environment = {**os.environ, "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"}
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=_ROOT, env=environment)
            lines: queue.Queue[bytes] = queue.Queue()
            threading.Thread(target=_read, args=(child, lines), daemon=True).start()
            try:
                self._follow(child, lines, log)
            finally:
                child.kill()
                child.wait()

    def _follow(self, child: subprocess.Popen[bytes], lines: queue.Queue[bytes], log: Path) -> None:
        """Read a worker's records until it is done, dead, too slow, or the time is over."""
        running: dict[str, Any] | None = None
        since = time.monotonic()
        while time.monotonic() < self.end:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                if time.monotonic() - since > self.limit:
                    self._broken(running, "hang", f"no answer for {self.limit:g} s")
                    return
                continue
            since = time.monotonic()
            if not line:
                if child.wait():
                    said = log.read_text("utf-8", "replace").strip().splitlines()
                    self._broken(running, "crash", f"exit status {child.returncode}: {said[0] if said else ''}")
                return
            record = json.loads(line)
            if "begins" in record:
                running = record
            elif "ends" in record:
                self.result.cases += 1
                self.next, running = record["ends"] + 1, None
                self.result.unjudged += self.result.kind != "model" and not record["oracle"]
                if record["kind"]:
                    self._keep(record["ends"], record["kind"], record["text"], Path(record["path"]))

    def _broken(self, running: dict[str, Any] | None, kind: str, text: str) -> None:
        """The worker died or hung over a case."""
        seed = running["begins"] if running is not None else self.next
        self._keep(seed, kind, text, Path(running["path"]) if running is not None else None)
        self.next = seed + 1

    def _keep(self, seed: int, kind: str, text: str, path: Path | None) -> None:
        name = f"{self.result.kind}-{seed}"
        self.result.findings.append(f"{name}: {kind}: {text}")
        print(f"  found {self.result.findings[-1][:400]}", flush=True)
        if path is None or len(self.result.stored) >= _MOST_STORED:
            return
        self.store.mkdir(parents=True, exist_ok=True)
        for suffix in (".onnx", ".npz"):
            if path.with_suffix(suffix).is_file():
                shutil.copy(path.with_suffix(suffix), self.store / f"{name}{suffix}")
        (self.store / f"{name}.txt").write_text(f"{kind}: {text}\n")
        self.result.stored.append(self.store / f"{name}.onnx")


def _read(child: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(b"{"):
            lines.put(line)
    lines.put(b"")
