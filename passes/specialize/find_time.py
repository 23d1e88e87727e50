"""Which axis of a model's inputs is time: the one along which all of the model is local, see `time_axis`."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.graph import Graph
from dlc.passes.specialize.positions import NotLocalError
from dlc.passes.specialize.time_axis import TimeAxes


def time_axes(graph: Graph, longest: int | None) -> TimeAxes:
    """The time axes of `graph`, by trying the axes of its inputs.

    Args:
        longest: how many steps a sequence may have; None for what the model says.

    Raises:
        DlcError: the model does not take so many steps.
        NotLocalError: no axis of an input is time to all outputs; with the reason for the best try.
    """
    best: NotLocalError | None = None
    reached = -1
    order = {node.output.name: i for i, node in enumerate(graph.nodes)}
    for source in _hypotheses(graph):
        try:
            found = TimeAxes(graph, source, longest)
        except NotLocalError as error:
            position = order[error.node.output.name] if error.likely else -1
            if position >= reached:  # the try that came furthest says most
                best, reached = error, position
            continue
        if (found.loops or found.histories or found.caches) and any(
            found.of[name] is not None for name in graph.outputs
        ):
            return found
    if best is not None:
        raise best
    raise NotLocalError(graph.nodes[-1], "no loop, causal convolution or attention runs over an axis of an input")


def _hypotheses(graph: Graph) -> Sequence[dict[str, int]]:
    """One axis of one input; other inputs of the same symbol have it too."""
    tries = []
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape):
            source = {value.name: axis}
            for other in graph.inputs:
                same = [i for i, d in enumerate(other.shape) if not isinstance(d, int) and str(d) == str(dim)]
                if other is not value and same:
                    source[other.name] = same[0]
            tries.append(source)
    return tries
