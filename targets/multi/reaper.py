"""Ends a local Ray when the process that started it is gone, however it ended.

Not all of Ray's own processes notice the death of their driver: after a SIGKILL two agents of Ray 2.60 stay for good. A
small process of ours holds the reading end of a pipe from the driver; when the pipe closes it waits for Ray to end by
itself, then kills what is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

GRACE_SECONDS = 3.0

# Only the standard library, and none of the driver's environment: it must outlive whatever happens to the driver.
_PROGRAM = f"""
import os, signal, sys, time
def started(pid):
    try: return open("/proc/" + pid + "/stat").read().rsplit(")", 1)[1].split()[19]
    except OSError: return ""
watched = [line.split() for line in sys.stdin]
until = time.monotonic() + {GRACE_SECONDS}
while time.monotonic() < until and any(started(pid) == start for pid, start in watched): time.sleep(0.1)
for pid, start in watched:
    if started(pid) == start:
        try: os.kill(int(pid), signal.SIGKILL)
        except OSError: pass
"""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _descendants() -> list[tuple[int, str]]:
    """This process's children, their children and so on: (pid, start time in clock ticks)."""
    stats = {int(p.name): _stat(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, new = set[int](), {os.getpid()}
    while new:
        new = {pid for pid, stat in stats.items() if stat and int(stat[1]) in new} - found
        found |= new
    return [(pid, stats[pid][19]) for pid in sorted(found)]


class Reaper:
    """Watches the processes that exist below this one now."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM], stdin=subprocess.PIPE, start_new_session=True, text=True
        )
        own = self._process.pid
        assert self._process.stdin is not None
        self._process.stdin.writelines(f"{pid} {start}\n" for pid, start in _descendants() if pid != own)
        self._process.stdin.flush()

    def finish(self) -> None:
        """End what is left of the processes now."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(GRACE_SECONDS + 10)
