"""``python -m tests.fuzz``: fuzzers side by side for a time, or a stored case again.

Exit codes: 0 nothing was found; 1 something was, and the paths of the stored cases are printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path

from tests.fuzz import differential, importer, store
from tests.fuzz.watch import Watch
from tests.guard import LEVELS, guarded


def _again(path: Path, kind: str | None) -> int:
    if kind == "guard":
        with guarded():
            found, _ = differential.check(store.load(path), targets=[f"cpu:{level}" for level in LEVELS])
    elif path.with_suffix(".npz").is_file():
        found, oracle = differential.check(store.load(path))
        print(f"compared with {oracle or 'nothing: no oracle runs it'}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = importer.check(path.read_bytes(), Path(folder), 0)
    print(found.text if found is not None else "nothing is wrong")
    return int(found is not None)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long each fuzzer runs")
    parser.add_argument("--seed", type=int, help="the first random seed; by default another one each time")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which a case counts as a hang")
    parser.add_argument("--only", choices=["graph", "model", "guard"], help="one fuzzer; by default graph and model")
    parser.add_argument("--store", type=Path, default=Path("fuzz-findings"), help="where cases are kept")
    parser.add_argument("--replay", type=Path, help="a stored case to try again")
    options = parser.parse_args()
    if options.replay is not None:
        return _again(options.replay, options.only)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(3), "big") * 1000
    kinds = [options.only] if options.only else ["graph", "model"]
    print(f"seed {seed}: {' and '.join(kinds)} for {options.seconds:g} s", flush=True)
    watches = [Watch(kind, seed, options.seconds, options.limit, options.store) for kind in kinds]
    threads = [threading.Thread(target=watch.run) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in (watch.result for watch in watches):
        left = f", {result.unjudged} that no oracle runs" if result.unjudged else ""
        print(f"{result.kind}: {result.cases} cases{left}, {len(result.findings)} findings")
    stored = [path for watch in watches for path in watch.result.stored]
    for path in stored:
        print(f"stored: {path}")
    return int(any(watch.result.findings for watch in watches))


if __name__ == "__main__":
    sys.exit(main())
