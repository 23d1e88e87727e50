"""Code for several levels of a kind of machine in one package, such as the instruction sets of a processor.

Each level's package is whole and lies in the folder of its name; what is the same in several is stored once. A session
loads the best that the machine and its operating system offer, see `Package.chosen`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlc.join import join
from dlc.package import LEVELS, Package
from dlc.targets.base import Variant


def join_levels(packages: Mapping[str, Package], target: str) -> Package:
    """The package of one model's `packages`, by level, best first; `target` is the name of the whole."""
    variants = []
    for name, package in packages.items():
        needs = package.manifest["variants"] or [Variant(name).as_json()]  # a model without kernels needs nothing
        variants.append({**needs[0], "name": name})
    manifest = {"target": target, "runtime": LEVELS, "build": {}, "variants": variants}
    return join(packages, next(iter(packages.values())), manifest)
