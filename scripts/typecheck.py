"""Run mypy over the project under its installed names.

The folders passes/, frontends/, ... are installed below `dlc`, so mypy has to see them there, in a tree of links.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Exit status of mypy."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "dlc"
        package.mkdir()
        for item in (ROOT / "dlc").iterdir():
            (package / item.name).symlink_to(item)
        for name in ("frontends", "passes", "targets", "zoo"):
            (package / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "dlc"]
        return subprocess.run([*command, "--cache-dir", str(ROOT / ".mypy_cache")], cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
