"""Quantisation: one road from a float graph, or a QDQ graph made elsewhere, to integer operators."""

from __future__ import annotations

from dlc.options import Options
from dlc.passes.quantize import calibrate, cleanup, form_integers, mark
from dlc.pipeline import Pass


def quantize_passes(options: Options) -> list[Pass]:
    """The passes to run behind the simplification, before layouts and fusion."""
    marking = [calibrate.PASS, mark.PASS] if options.quantize == "int8" else []
    return [*marking, form_integers.PASS, cleanup.PASS]
