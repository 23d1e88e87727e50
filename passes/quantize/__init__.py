"""Quantisation: one road from a float graph, or a QDQ graph made elsewhere, to integer operators."""

from __future__ import annotations

from dlc.options import Options
from dlc.passes.quantize import (
    calibrate,
    cleanup,
    codebooks,
    dynamic,
    form_integers,
    groups,
    join_tables,
    mark,
    settle_weights,
    short_weights,
    to_unsigned,
)
from dlc.passes.specialize.blocks import everywhere
from dlc.pipeline import Pass


def quantize_passes(options: Options) -> list[Pass]:
    """The passes to run behind the simplification, before layouts and fusion.

    A model that holds Q/DQ nodes or integer operators already is not calibrated: its scales and weights are kept.
    What control flow runs is quantised like the graph around it, with ranges of its own.
    Weights that stay float may become bfloat16 in the end.
    """
    calibrating, marking = ([calibrate.PASS], [mark.PASS]) if options.quantize == "int8" else ([], [])
    late = [dynamic.PASS] if options.quantize in ("int8-dynamic", "int4") else []
    late += [groups.PASS, codebooks.PASS] if options.quantize not in ("none", "bf16") else []
    late += [cleanup.PASS, short_weights.PASS]
    forming = [*marking, settle_weights.PASS, to_unsigned.PASS, form_integers.PASS, join_tables.PASS, *late]
    return [*calibrating, *(everywhere(step) for step in forming)]
