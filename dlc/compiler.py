"""The pipeline on one page: frontend -> simplify -> quantise -> the target's passes -> build -> package."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dlc.errors import DlcError
from dlc.options import Options
from dlc.package import Package
from dlc.pipeline import Context, Pass, run_passes
from dlc.runtime.demands import Demands
from dlc.runtime.ffi import import_tvm
from dlc.targets.base import Build, Target, find_target

if TYPE_CHECKING:
    import onnx

    from dlc.cache import Cache
    from dlc.ir.graph import Graph

FRONTEND = "frontend"
ZOO = "zoo:"
STREAM = "stream"  # the folder of the streaming form
Progress = Callable[[str, int, int], None]
_log = logging.getLogger("dlc")


def _target(options: Options) -> Target:
    """The target; behind it TVM may be imported, because that has happened as `import_tvm` does it."""
    target = find_target(options.target)
    import_tvm()
    return target


def common_passes(options: Options) -> list[Pass]:
    """The passes that every target's compilation begins with."""
    from dlc.passes.quantize import quantize_passes
    from dlc.passes.simplify import SIMPLIFY
    from dlc.passes.specialize import experts, gathered_rows, gathered_weights, hoist

    return [*SIMPLIFY, hoist.PASS, experts.PASS, gathered_weights.PASS, gathered_rows.PASS, *quantize_passes(options)]


def passes_of(options: Options, target: Target) -> list[Pass]:
    """All passes of one compilation, in order."""
    return [*common_passes(options), *target.passes(options)]


def stages(options: Options) -> list[str]:
    """The names of the points at which the IR can be printed: the frontend, then each pass."""
    return [FRONTEND, *(step.name for step in passes_of(options, _target(options)))]


def model_source(model: Any) -> Any:
    """`model` with ``zoo:NAME`` replaced by the path of that model's file."""
    if isinstance(model, str) and model.startswith(ZOO):
        from dlc.zoo import model_path

        return model_path(model.removeprefix(ZOO))
    return model


def import_source(model: Any, options: Options, ranges: Mapping[str, tuple[int, int]] | None = None) -> Any:
    """The IRModule of a model, before any pass; for sizes of symbols in `ranges` only, where they are given."""
    from dlc.frontends.onnx import import_model

    return import_model(model_source(model), options.shapes, ranges)


def _context(module: Any, options: Options, target: Target, calibration: Any, progress: Progress | None) -> Context:
    context = Context(options, target=target)
    if calibration is not None:
        from dlc.calibration import samples_of

        context.calibration = samples_of(calibration, module)
        if isinstance(calibration, str) and calibration.partition(":")[0] == "random":
            context.notes["calibration data"] = calibration  # not what the model will see: the manifest says so
    if progress is not None:
        context.progress = progress
    return context


def module_at(model: Any, options: Options, stage: str, calibration: Any = None) -> Any:
    """The IRModule behind a stage of `stages`.

    Raises:
        DlcError: there is no such stage, or the model or options are wrong.
    """
    target = _target(options)
    from dlc import composite
    from dlc.ir.convert import view

    known = [FRONTEND, *(step.name for step in passes_of(options, target))]
    if stage not in known:
        raise DlcError(f"no stage '{stage}'; known: {', '.join(known)}")
    module = import_source(model, options)
    if stage == FRONTEND:
        return module
    context = _context(module, options, target, calibration, None)
    common = common_passes(options)
    if stage in {step.name for step in common}:
        return run_passes(module, common, context, stage)
    module = run_passes(module, common, context)
    if composite.needs_host(view(module), target):
        text = (
            "the host runs some of the model's nodes, so the target's stages are one a part: compile with DLC_DUMP=DIR"
        )
        raise DlcError(f"no stage '{stage}' of the whole model: {text}")
    return run_passes(module, target.passes(options), context, stage)


def common_module(model: Any, options: Options, calibration: Any = None) -> Any:
    """The IRModule of a model behind the common passes; errors as of `compile_model`."""
    target = _target(options)
    module = import_source(model, options)
    context = _context(module, options, target, calibration, None)
    return run_passes(module, common_passes(options), context)


def compile_model(
    model: Any, options: Options, calibration: Any = None, progress: Progress | None = None, cache: bool = True
) -> Package:
    """Compile an ONNX model, or find the package in the cache; arguments and errors as of `dlc.compile`."""
    source = model_source(model)
    packages, key = _cache_and_key(source, options, calibration) if cache else (None, "")
    found = packages.find(key) if packages is not None else None
    if found is not None:
        _log.info("compile cache: hit %s", key)
        return found
    package = _compile_model(model, options, calibration, progress)
    if packages is not None:
        _log.info("compile cache: miss %s", key)
        if _cache_and_key(source, options, calibration)[1] == key:  # else a file changed while it was read
            packages.store(key, package)
    return package


def _cache_and_key(source: Any, options: Options, calibration: Any) -> tuple[Cache | None, str]:
    """The compile cache and the key in it; no cache, with a line in the log, where it is off or cannot serve."""
    from dlc.cache import the_cache
    from dlc.cache_key import NotCacheableError, compile_key

    packages = the_cache()
    try:
        if packages.limit == 0:
            raise NotCacheableError("it is turned off")
        if os.environ.get("DLC_DEBUG") == "1" or os.environ.get("DLC_DUMP"):
            raise NotCacheableError("the stages are to be seen")
        return packages, compile_key(source, options, calibration, find_target(options.target))
    except NotCacheableError as reason:
        _log.info("compile cache: not used: %s", reason)
        return None, ""


def _compile_model(model: Any, options: Options, calibration: Any, progress: Progress | None) -> Package:
    """Compile an ONNX model, whatever the cache holds."""
    from dlc.cases import compile_cases, hosted

    target = _target(options)
    if progress is not None:
        progress(FRONTEND, 0, 1)
    module = import_source(model, options)
    cuts = _cuts(module)

    def common(module: Any) -> tuple[Any, Context]:
        context = _context(module, options, target, calibration, progress)
        return run_passes(module, common_passes(options), context), context

    try:
        module, context = common(module)
        # The host takes no sequence in parts, and the target of several levels is asked by each of them.
        count = 0 if options.stream or target.runs_host else hosted(module, target)
        general = compile_module(module, context)
        if not count:
            return general
        return compile_cases(general, count, cuts, lambda ranges: common(import_source(model, options, ranges)), target)
    except DlcError as error:
        # A pass or a target names the node; only here the file is known.
        where = f"{os.fspath(model)}: " if isinstance(model, str | os.PathLike) else ""
        raise DlcError(f"{where}{error}") from error


def _cuts(module: Any) -> Mapping[str, list[int]]:
    """Of each symbol, the sizes from which on a comparison of extents has another answer."""
    from dlc.ir.convert import view

    return {name: [int(size) for size in found] for name, found in view(module).attrs.get("dlc.cuts", {}).items()}


def compile_module(module: Any, context: Context) -> Package:
    """The package of an IRModule that has been through the common passes."""
    levels = context.target.levels()
    if not levels:
        return _compile_forms(module, context)
    from dlc.levels import join_levels

    # Each compilation has a module and notes of its own: passes rewrite and add to them.
    packages = {name: _compile_forms(module.clone(), context.branched(target, name)) for name, target in levels.items()}
    return join_levels(packages, context.target.spec)


def _compile_forms(module: Any, context: Context) -> Package:
    """The package for one target, with the streaming form in it where that is asked for."""
    target: Target = context.target
    context.progress("build", 0, 1)
    if not context.options.stream:
        return part_package(module, target, context)[0]
    from dlc.passes.specialize.stream import streaming

    # The passes of a target may rewrite a module in place: the other form is made first.
    form = streaming(module, context.options.max_length)
    parts, _ = part_package(form.module, target, replace(context, part=f"{context.part}/{STREAM}".strip("/")))
    package, _ = part_package(module, target, context)
    facts = {"stream": STREAM, "stream_axes": form.axes, "stream_length": form.longest}
    return package.with_nested(STREAM, parts, facts)


def part_package(module: Any, target: Target, context: Context) -> tuple[Package, Build]:
    """Compile an IRModule behind the common passes for one target: the whole model, or a part of it."""
    from dlc.ir.convert import view

    if target.levels():
        specs = ", ".join(level.spec for level in target.levels().values())
        raise DlcError(f"target {target.spec} is for whole models, and a part is for one level: {specs}")
    graph = view(module)
    build = compile_build(module, target, context)
    manifest = _manifest(graph, target, build, context)
    explanation = {
        "nodes": build.explanation,
        "declined": [
            {"pass": d.pass_name, "node": str(d.origin), "value": d.origin.value, "reason": d.reason}
            for d in context.declined
        ],
        "values": context.notes.get("quantization", {}).get("values", {}),
    }
    members = {**build.members, "explain.json": (json.dumps(explanation, indent=1, sort_keys=True) + "\n").encode()}
    return Package.create(manifest, members), build


def compile_build(module: Any, target: Target, context: Context) -> Build:
    """The target's build of a module, composed where the host has to run some of its nodes."""
    from dlc import composite
    from dlc.ir.convert import view

    if not target.runs_host and composite.needs_host(view(module), target):
        return composite.build(module, context, lambda _: lambda node: target)
    return target.compile(module, context)


def _manifest(graph: Graph, target: Target, build: Build, context: Context) -> dict[str, Any]:
    from dlc.ir.serial import extent_text

    values = graph.values()
    outputs = [values[name] for name in graph.outputs]
    input_names = graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs]
    output_names = graph.attrs.get("dlc.outputs") or [v.name for v in outputs]

    marked = context.notes.get("quantization", {}).get("values", {})

    def infos(names: list[str], tensors: Any) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": [extent_text(d) for d in v.shape], "dtype": v.dtype}
            | {key: marked[name][key] for key in ("scale", "zero_point") if name in marked}
            for name, v in zip(names, tensors, strict=True)
        ]

    return {
        "target": target.spec,
        "runtime": build.runtime or target.runtime,
        "inputs": infos(input_names, graph.inputs),
        "outputs": infos(output_names, outputs),
        **Demands.of_graph(graph.attrs).as_json(),
        "variants": [variant.as_json() for variant in build.variants],
        "options": context.options.as_json(),
        "notes": _notes(context),
        "versions": dict(_versions()),
        "build": build.manifest,
    }


def _notes(context: Context) -> dict[str, Any]:
    """What the passes noted, without the long tables: scales are in explain.json, ranges have become constants."""
    notes = {key: value for key, value in context.notes.items() if key != "quantization"}
    if isinstance(notes.get("calibration"), dict):
        notes["calibration"] = {key: value for key, value in notes["calibration"].items() if key != "ranges"}
    return notes


_VERSIONS = {"dlc": "dlc", "tvm": "apache-tvm", "onnx": "onnx", "numpy": "numpy"}


@functools.cache
def _versions() -> dict[str, str]:
    """The installed versions; reading the metadata takes a tenth of the time of compiling a small model."""
    return {name: version(dist) for name, dist in _VERSIONS.items()}


def quantize_model(model: Any, options: Options, calibration: Any) -> onnx.ModelProto:
    """The simplified model with Q/DQ nodes; arguments and errors as of `dlc.quantize`."""
    import_tvm()
    from dlc.passes.quantize.write_qdq import quantize_onnx

    return quantize_onnx(model_source(model), calibration, options)
