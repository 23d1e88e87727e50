"""A loaded model: checked inputs in, outputs out, with as little in between as Python allows."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the small floats with numpy)
import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import is_tensor
from dlc.package import Package
from dlc.runtime.binding import Binding
from dlc.runtime.demands import Demands
from dlc.runtime.execute import empty

if TYPE_CHECKING:
    from dlc.runtime.stream import Stream
    from dlc.targets.base import Executable

_USABLE = 0x1 | 0x100  # numpy's flag bits: C-contiguous, aligned
_WRITABLE = _USABLE | 0x400
_PLANS = 256  # combinations of input shapes that are remembered


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: its name, its extents (ints, symbol names, or arithmetic on those) and its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class _Plan:
    """What one combination of input shapes leads to; no output shapes where the executable makes the outputs."""

    sizes: Mapping[str, int]
    shapes: tuple[tuple[int, ...], ...]


def _infos(records: Sequence[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    known = TensorInfo.__dataclass_fields__
    return tuple(
        TensorInfo(**{**{k: v for k, v in r.items() if k in known}, "shape": tuple(r["shape"])}) for r in records
    )


class Session:
    """A model that is ready to run. It may be used from several threads at once.

    Attributes:
        inputs, outputs: what the model takes and gives, in order.
        demands: what the model demands of its symbols' sizes.
        package: what it was loaded from; of several levels in a package, the one that was chosen.
        threads: how many one run may use.
    """

    def __init__(self, package: Package | str | os.PathLike[str], threads: int = 1) -> None:
        """Load `package` (or the file at a path) for `threads` threads.

        Raises:
            DlcError: the package is damaged or of a newer format, this machine cannot run it, or the target does not
                run on so many threads.
        """
        opened = package if isinstance(package, Package) else Package.open(package)
        if not isinstance(threads, int) or threads < 1:
            raise DlcError(f"threads must be a positive number, got {threads!r}")
        self.threads = threads
        self.package = opened.chosen()  # before any code is loaded
        manifest = self.package.manifest
        try:
            self.inputs, self.outputs = _infos(manifest["inputs"]), _infos(manifest["outputs"])
            runtime = importlib.import_module(manifest["runtime"])
        except (KeyError, TypeError) as error:
            raise DlcError(f"{self.package.name}: the manifest lacks {error}") from error
        except ImportError as error:
            message = f"the runtime of target '{manifest.get('target')}' is not installed: {error}"
            raise DlcError(f"{self.package.name}: {message}") from error
        self.demands = Demands.of(manifest)
        self._attach(runtime.load(self.package, threads))

    def _attach(self, executable: Executable) -> None:
        self.executable = executable
        # Where extents depend on the data, outputs cannot be allocated before the run.
        self._compute = getattr(executable, "compute", None)
        self._execute: Callable[..., None] = getattr(executable, "run", _no_run)
        self._wanted = tuple((info.name, _dtype(info)) for info in self.inputs)
        self._given = tuple((info.name, _dtype(info)) for info in self.outputs)
        # Outputs that a model writes over one of its inputs: output -> input.
        self._updated: dict[int, int] = dict(self.package.manifest.get("build", {}).get("updated", ()))
        self._plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}
        self._streaming: Session | None = None

    def clone(self) -> Session:
        """Another session of the same model that shares its constants; cheap."""
        twin = object.__new__(Session)
        twin.package, twin.inputs, twin.outputs, twin.demands = self.package, self.inputs, self.outputs, self.demands
        twin.threads = self.threads
        twin._attach(self.executable.clone())
        return twin

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Compute the outputs, by name.

        Args:
            inputs: arrays by input name: numpy, or anything on the CPU that speaks DLPack. Names, dtypes and extents
                must be the model's; memory that is not contiguous is copied.
            outputs: arrays to write to, by output name, contiguous, of exactly the right shape and dtype, not
                overlapping an input; outputs that are not named are allocated.

        Returns:
            Every output by name: numpy arrays, or the objects given as `outputs`.

        Raises:
            DlcError: an input or output does not fit; names it, what was expected and what came. Or there is no memory.
        """
        arrays = self._checked(inputs)
        if self._compute is not None:
            return self._computed(arrays, outputs or {})
        plan = self._plan_of(arrays)
        if outputs is None:
            results = self._allocated(plan, arrays)
            self._execute(arrays, results, plan.sizes)
            return {name: array for (name, _), array in zip(self._given, results, strict=True)}
        results = self._preallocated(outputs, arrays, plan)
        self._execute(arrays, results, plan.sizes)
        return {name: outputs.get(name, array) for (name, _), array in zip(self._given, results, strict=True)}

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Binding:
        """The model with its arrays in fixed places, for loops that call it again and again: a call checks nothing.

        Args:
            inputs: as in `run`, but memory must be contiguous and aligned: the arrays themselves are read.
            outputs: as in `run`.

        Returns:
            What runs the model on whatever the arrays hold then.

        Raises:
            DlcError: as `run`; an input would have to be copied; extents of outputs depend on the data; or the package
                has several codes to choose from.
        """
        if self._compute is not None:
            reason = "their extents depend on the data, or the sizes choose among several codes"
            raise DlcError(f"{self.package.name}: outputs have no fixed places, for {reason}")
        arrays = self._checked(inputs)
        for array, info in zip(arrays, self.inputs, strict=True):
            if not np.may_share_memory(array, _as_array(inputs[info.name], "input", info.name)) and array.size:
                raise DlcError(f"input '{info.name}': the array to bind must be contiguous and aligned")
        plan = self._plan_of(arrays)
        results = self._preallocated(outputs or {}, arrays, plan)
        make = getattr(self.executable, "bound", None)
        given = arrays, results, plan.sizes
        execute = make(*given) if make is not None else partial(self._execute, *given)
        return Binding(
            execute,
            {info.name: array for info, array in zip(self.inputs, arrays, strict=True)},
            {name: array for (name, _), array in zip(self._given, results, strict=True)},
        )

    def map(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Compute the outputs of many inputs, in order; a target that works on several at once is kept busy.

        Args:
            inputs: what `run` takes, one after the other. Arrays may not change until their outputs have come.

        Yields:
            What `run` returns for each.

        Raises:
            DlcError: as `run`, when the outputs of the input concerned would be next.
        """
        submit = getattr(self.executable, "submit", None)
        if submit is None:
            yield from (self.run(each) for each in inputs)
            return
        waiting: deque[tuple[Future[None], list[np.ndarray]]] = deque()
        for each in inputs:
            waiting.append(self._begin(submit, each))
            if len(waiting) >= self.executable.depth:  # type: ignore[attr-defined]
                yield self._ended(*waiting.popleft())
        while waiting:
            yield self._ended(*waiting.popleft())

    def stream(self) -> Stream:
        """A sequence that is given in parts, of a model that was compiled for it (``stream=True``, ``--stream``).

        Raises:
            DlcError: the package has no streaming form.
        """
        from dlc.runtime.stream import Stream

        name = self.package.manifest.get("stream")
        if name is None:
            raise DlcError(f"{self.package.name}: the package has no streaming form; compile it with --stream")
        if self._streaming is None:
            self._streaming = Session(self.package.nested(name), self.threads)
        manifest = self.package.manifest
        return Stream(self._streaming, manifest["stream_axes"], manifest["stream_length"])

    def generate(
        self,
        prompt: Any,
        steps: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        streams: int = 1,
        logits: str | None = None,
        token: str | None = None,
        states: Mapping[str, str] | None = None,
        initial: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Generate tokens: what the model says of the next one is sampled and given back to it.

        The model is a sequence model that was compiled for streaming, with one input of tokens (rows, time) or of
        one-hot floats; or a step model, of which `states` says what it carries.

        Args:
            prompt: tokens (rows, steps), integers; the rows are independent.
            steps: how many tokens to generate for each row.
            temperature: what the logits are divided by before a token is drawn; 0 always takes the largest.
            top_k: how many of the largest logits take part; 0 for all.
            seed: of the draws; a row's draws do not depend on the other rows.
            streams: how many continuations of each row there are to be, next to each other in the result; each has
                draws of its own.
            logits: the output that scores the classes; the first one unless said.
            token: a step model's input of tokens (one a row); the first that is no state unless said.
            states: a step model's output name -> the input that takes it in the next step.
            initial: the first values of states by input name; zeros where not given.

        Returns:
            int64 (rows * streams, steps).

        Raises:
            DlcError: the model or an argument does not fit, or the sequences would become longer than the model was
                compiled for; says what is expected.
        """
        from dlc.runtime.generate import Model, Sampling, StepModel, StreamModel, generate

        model: Model
        if states is None:
            model = StreamModel(self, logits)
        else:
            free = [info.name for info in self.inputs if info.name not in states.values()]
            scores = [info.name for info in self.outputs if info.name not in states]
            chosen = token if token is not None else next(iter(free), "")
            model = StepModel(self, chosen, logits or next(iter(scores), ""), states, initial or {})
        return generate(model, prompt, steps, Sampling(temperature, top_k, seed), streams)

    def close(self) -> None:
        """Free what the target holds beyond memory (processes, devices); the session cannot run afterwards."""
        close = getattr(self.executable, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, submit: Any, inputs: Mapping[str, Any]) -> tuple[Future[None], list[np.ndarray]]:
        """A call under way and where its outputs will be; a wrong input becomes the call's error."""
        try:
            arrays = self._checked(inputs)
            plan = self._plan_of(arrays)
            results = self._allocated(plan, arrays)
            return submit(arrays, results, plan.sizes), results
        except DlcError as error:
            future: Future[None] = Future()
            future.set_exception(error)
            return future, []

    def _ended(self, future: Future[None], results: list[np.ndarray]) -> dict[str, Any]:
        future.result()
        return {name: array for (name, _), array in zip(self._given, results, strict=True)}

    def _allocated(self, plan: _Plan, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            empty(name, shape, dtype) if i not in self._updated else arrays[self._updated[i]]
            for i, (shape, (name, dtype)) in enumerate(zip(plan.shapes, self._given, strict=True))
        ]

    def _plan_of(self, arrays: list[np.ndarray]) -> _Plan:
        return self._plans.get(tuple([array.shape for array in arrays])) or self._plan(arrays)

    def _checked(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """The arrays in the model's order, usable by native code."""
        if len(inputs) != len(self._wanted):
            self._complain_names(inputs)
        arrays = []
        for name, dtype in self._wanted:
            try:
                array = inputs[name]
            except KeyError:
                self._complain_names(inputs)
            if dtype is None:  # a sequence, strings, or an optional value
                arrays.append(array)
                continue
            if type(array) is not np.ndarray:
                array = _as_array(array, "input", name)
            if array.dtype is not dtype and array.dtype != dtype:
                raise DlcError(f"input '{name}' has dtype {array.dtype}, expected {dtype}")
            if array.flags.num & _USABLE != _USABLE:
                array = array.copy(order="C")
            arrays.append(array)
        return arrays

    # --- the slow path: shapes seen for the first time, preallocated outputs, errors ---------------------------------

    def _computed(self, arrays: Sequence[Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run an executable that makes its outputs itself; copy those that were given memory."""
        tensors = [(i, a) for i, a, (_, dtype) in zip(self.inputs, arrays, self._wanted, strict=True) if dtype]
        shapes = tuple(array.shape for _, array in tensors)
        plan = self._plans.get(shapes)
        if plan is None:
            plan = _Plan(bind_symbols([info for info, _ in tensors], shapes, self.demands), ())
            self._remember(shapes, plan)
        sizes = plan.sizes
        assert self._compute is not None
        results = self._compute(list(arrays), sizes)
        if not outputs:
            return {name: result for (name, _), result in zip(self._given, results, strict=True)}
        found = tuple(np.shape(r) if dtype else () for r, (_, dtype) in zip(results, self._given, strict=True))
        places = self._preallocated(outputs, [array for _, array in tensors], _Plan(sizes, found))
        for place, result, (name, _) in zip(places, results, self._given, strict=True):
            if name in outputs:
                np.copyto(place, result)
        return {name: outputs.get(name, result) for (name, _), result in zip(self._given, results, strict=True)}

    def _plan(self, arrays: Sequence[np.ndarray]) -> _Plan:
        sizes = bind_symbols(self.inputs, [a.shape for a in arrays], self.demands)
        shapes = tuple(tuple(int(d) for d in shape) for shape in self.executable.output_shapes(sizes))
        plan = _Plan(sizes, shapes)
        self._remember(tuple(a.shape for a in arrays), plan)
        return plan

    def _remember(self, shapes: tuple[tuple[int, ...], ...], plan: _Plan) -> None:
        if len(self._plans) >= _PLANS:
            self._plans = {}
        self._plans[shapes] = plan

    def _preallocated(self, outputs: Mapping[str, Any], inputs: Sequence[np.ndarray], plan: _Plan) -> list[np.ndarray]:
        unknown = sorted(set(outputs) - {name for name, _ in self._given})
        if unknown:
            raise DlcError(f"unknown output '{unknown[0]}'; the model gives {_listing(self.outputs)}")
        results: list[np.ndarray] = []
        for i, ((name, dtype), shape) in enumerate(zip(self._given, plan.shapes, strict=True)):
            if i in self._updated and name in outputs:
                raise DlcError(f"output '{name}' is written over input '{self.inputs[self._updated[i]].name}'")
            if i in self._updated:
                results.append(inputs[self._updated[i]])
                continue
            if name not in outputs:
                results.append(empty(name, shape, dtype))
                continue
            given = outputs[name]
            array = given if type(given) is np.ndarray else _as_array(given, "output", name)
            if array.dtype != dtype or array.shape != shape:
                got = f"{array.dtype}{list(array.shape)}"
                raise DlcError(f"output '{name}' is preallocated as {got}, expected {dtype}{list(shape)}")
            if array.flags.num & _WRITABLE != _WRITABLE:
                raise DlcError(f"output '{name}': the preallocated array must be contiguous, aligned and writable")
            # Kernels assume that what they write is nothing that they read.
            if any(np.may_share_memory(array, other) for other in (*inputs, *results)):
                raise DlcError(f"output '{name}': the preallocated array overlaps an input or another output")
            results.append(array)
        return results

    def _complain_names(self, inputs: Mapping[str, Any]) -> None:
        known = {name for name, _ in self._wanted}
        missing = [name for name, _ in self._wanted if name not in inputs]
        extra = sorted(str(name) for name in inputs if name not in known)
        problem = f"input '{missing[0]}' is missing" if missing else f"unknown input '{extra[0]}'"
        got = f"; got {', '.join(sorted(str(n) for n in inputs)) or 'none'}" if missing else ""
        raise DlcError(f"{problem}; the model takes {_listing(self.inputs)}{got}")


def _no_run(*_: Any) -> None:
    raise AssertionError("this executable computes its outputs itself")


def _dtype(info: TensorInfo) -> np.dtype | None:
    """The dtype of a tensor of numbers; None for anything else."""
    return np.dtype(info.dtype) if is_tensor(info.dtype) else None


def _listing(infos: Sequence[TensorInfo]) -> str:
    return "; ".join(str(info) for info in infos) or "none"


def _as_array(value: Any, role: str, name: str) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        raise DlcError(f"{role} '{name}' is a {type(value).__name__}; expected a numpy array or one that speaks DLPack")
    try:
        return np.from_dlpack(value)
    except Exception as error:  # producers raise what they like
        raise DlcError(f"{role} '{name}' cannot be read through DLPack: {error}") from error


def bind_symbols(
    infos: Sequence[TensorInfo], shapes: Sequence[tuple[int, ...]], demands: Demands | None = None
) -> dict[str, int]:
    """The size of every symbol, read from the inputs' shapes.

    Raises:
        DlcError: a rank or extent does not fit, a symbol would have two sizes, or one that the model does not take.
    """
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for info, shape in zip(infos, shapes, strict=True):
        if len(shape) != len(info.shape):
            raise _misfit(info, shape)
        for extent, dim in zip(shape, info.shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier() and sizes.setdefault(dim, extent) == extent:
                source.setdefault(dim, info.name)
    for info, shape in zip(infos, shapes, strict=True):
        for extent, dim in zip(shape, info.shape, strict=True):
            if (dim if isinstance(dim, int) else _evaluate(dim, sizes)) != extent:
                known = "".join(f"; {s} is {sizes[s]} from input '{source[s]}'" for s in sizes if s in str(dim))
                raise _misfit(info, shape, known)
    if demands is not None:
        demands.check(sizes, source)
    return sizes


def _evaluate(dim: str, sizes: Mapping[str, int]) -> int:
    if dim in sizes:
        return sizes[dim]
    from dlc.ir.interpret import evaluate_dim  # only models with symbolic extents need the table of operators

    return evaluate_dim(dim, sizes)


def _misfit(info: TensorInfo, shape: tuple[int, ...], note: str = "") -> DlcError:
    expected = ", ".join(str(d) for d in info.shape)
    return DlcError(f"input '{info.name}' has shape {list(shape)}, expected [{expected}]{note}")
