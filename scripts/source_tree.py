"""The project under its installed names without installing it: a tree of links.

The folders passes/, frontends/, ... are installed below `dlc`; see pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BELOW_DLC = ("frontends", "passes", "targets", "zoo")


def link_into(folder: str | Path) -> None:
    """Make the package ``dlc`` in `folder`, which is then a path to import from."""
    package = Path(folder) / "dlc"
    package.mkdir()
    for item in (ROOT / "dlc").iterdir():
        (package / item.name).symlink_to(item)
    for name in _BELOW_DLC:
        (package / name).symlink_to(ROOT / name)
