"""Join neighbouring dimensions of an elementwise body, so that loops are few and long.

Dimensions join when every value has all of them or none (extent 1, broadcast), and every operand that has them steps
from one to the next without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from dlc.ir.graph import Graph, Node, Value
from dlc.ir.ops import OPS
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.evaluate import is_one
from dlc.targets.layout import Layout, simplify

_PARAMETERS = ("dlc.quantize", "dlc.dequantize")  # inputs 1 and 2 may be vectors along `axis`


def _axis_parameters(body: Graph) -> dict[str, tuple[int, int]] | None:
    """Inputs that lie along one axis of a node's output: name -> (axis, rank). None where roles conflict."""
    values, found = body.values(), dict[str, tuple[int, int]]()
    plain = set()
    for node in body.nodes:
        rank = len(node.output.shape)
        for position, name in enumerate(node.inputs):
            along = node.op in _PARAMETERS and position and len(values[name].shape) == 1 and rank > 1
            if along and not is_one(values[name].shape[0]):
                place = (node.attrs["axis"] % rank, rank)
                if found.setdefault(name, place) != place:
                    return None
            elif node.op == "dlc.table" and position == 1:
                found[name] = (-1, 0)
            else:
                plain.add(name)
    return None if plain & found.keys() else found


class _Collapse:
    def __init__(self, body: Graph, layouts: Mapping[str, Layout], along: Mapping[str, tuple[int, int]]) -> None:
        self.body, self.layouts, self.along = body, layouts, along
        self.values = {name: value for name, value in body.values().items() if name not in body.constants}
        self.shape = max((self.values[o].shape for o in body.outputs), key=len)
        self.rank = len(self.shape)

    def padded(self, name: str) -> list[Expr]:
        """A value's shape at the full rank."""
        if name in self.along:
            axis, _ = self.along[name]
            return [self.values[name].shape[0] if i == axis else 1 for i in range(self.rank)]
        own = self.values[name].shape
        return [1] * (self.rank - len(own)) + list(own)

    def joins(self, axis: int, inner: int) -> bool:
        """Whether dimensions `axis` and `inner` can be one; between them are only extents of one."""
        for name in self.values:
            if self.along.get(name, (0, 0))[0] == -1:
                continue
            shape = self.padded(name)
            if is_one(shape[axis]) != is_one(shape[inner]):
                return False
            layout = self.layouts.get(name)
            if layout is None or is_one(shape[axis]) or name in self.along:
                if layout is not None and name in self.along and not is_one(shape[axis]):
                    return False
                continue
            shift = self.rank - len(layout.shape)
            if simplify(layout.strides[axis - shift] - layout.strides[inner - shift] * shape[inner]) != 0:
                return False
        return True

    def groups(self) -> list[list[int]]:
        """Dimensions that become one. An extent of one joins anything, and says nothing about its neighbours."""
        found = [[0]]
        for axis in range(1, self.rank):
            last = self.last_long(found[-1])
            if last is None or is_one(self.shape[axis]) or self.joins(last, axis):
                found[-1].append(axis)
            else:
                found.append([axis])
        last = self.last_long(found[-1])
        if last is not None and last != self.rank - 1 and not self.contiguous(last):
            # Kernels step along the last dimension by one element: here that is a dimension of extent one.
            found[-1].pop()
            found.append([self.rank - 1])
        return found

    def contiguous(self, axis: int) -> bool:
        """Whether every operand that has dimension `axis` steps along it by one element."""
        for name, layout in self.layouts.items():
            own = axis - (self.rank - len(layout.shape))
            if name not in self.along and own >= 0 and not is_one(layout.shape[own]) and layout.strides[own] != 1:
                return False
        return True

    def last_long(self, group: Sequence[int]) -> int | None:
        """The innermost dimension of a group whose extent is not one."""
        return next((axis for axis in reversed(group) if not is_one(self.shape[axis])), None)

    def shape_of(self, name: str, groups: Sequence[Sequence[int]]) -> tuple[Expr, ...]:
        full = self.padded(name)
        return tuple(simplify(prod((full[a] for a in group), start=1)) for group in groups)

    def run(self) -> tuple[Graph, dict[str, Layout]]:
        groups = self.groups()
        position = {axis: g for g, group in enumerate(groups) for axis in group}

        def value(old: Value) -> Value:
            if self.along.get(old.name, (0, 0))[0] == -1 or old.name in self.along:
                return old
            return replace(old, shape=self.shape_of(old.name, groups))

        def node(old: Node) -> Node:
            attrs = dict(old.attrs)
            if old.op in _PARAMETERS:
                rank = len(old.output.shape)
                attrs["axis"] = position[self.rank - rank + attrs["axis"] % max(1, rank)]
            return replace(old, outputs=tuple(value(o) for o in old.outputs), attrs=attrs)

        layouts = dict(self.layouts)
        for name, layout in self.layouts.items():
            if name in self.along:
                continue
            shift = self.rank - len(layout.shape)
            steps = [g[-1] if (long := self.last_long(g)) is None else long for g in groups]
            strides = [layout.strides[axis - shift] if axis >= shift else 0 for axis in steps]
            halo = [(0, 0) if len(g) > 1 or g[0] < shift else layout.halo[g[0] - shift] for g in groups]
            layouts[name] = replace(layout, shape=self.shape_of(name, groups), strides=tuple(strides), halo=tuple(halo))
        body = replace(
            self.body, inputs=tuple(value(i) for i in self.body.inputs), nodes=tuple(node(n) for n in self.body.nodes)
        )
        return body, layouts


def collapse(body: Graph, layouts: Mapping[str, Layout]) -> tuple[Graph, dict[str, Layout]]:
    """The same body with fewer dimensions, and layouts to match; as it is where it moves data or mixes shapes."""
    values = body.values()
    elementwise = all(OPS[n.op].kind == "elementwise" for n in body.nodes)
    ranks = {tuple(str(d) for d in values[o].shape) for o in body.outputs}
    along = _axis_parameters(body)
    if not elementwise or len(ranks) != 1 or along is None or not values[body.outputs[0]].shape:
        return body, dict(layouts)
    wrong = any(rank not in (0, len(values[body.outputs[0]].shape)) for _, rank in along.values())
    if wrong or any(name in along for name in body.outputs):
        return body, dict(layouts)
    return _Collapse(body, layouts, along).run()
