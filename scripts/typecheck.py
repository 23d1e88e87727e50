"""Run mypy over the project under its installed names, in a tree of links."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from source_tree import ROOT, link_into


def main() -> int:
    """Exit status of mypy."""
    with tempfile.TemporaryDirectory() as folder:
        link_into(folder)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "dlc"]
        return subprocess.run([*command, "--cache-dir", str(ROOT / ".mypy_cache")], cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
