"""Products with gathered matrices and rows: nothing is copied, and what stays says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.compiler import common_passes, import_source
from dlc.explain import read
from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from dlc.ir.rewrite import live_nodes
from dlc.options import Options
from dlc.pipeline import Context, run_passes
from dlc.runtime.ffi import import_tvm

import_tvm()
OPTIONS = Options(target="reference")
GROUPS, INNER, OUTER = 5, 8, 6


def product(
    x: tuple[int, ...], index: tuple[int, ...], turned: bool = False, swapped: bool = False, dtype: str = "float32",
    table: int = 3,
) -> tuple[Any, dict[str, np.ndarray]]:  # fmt: skip
    """A product of x with gathered matrices (or, of two dimensions, rows), and inputs for it.

    turned: the gathered matrix is the left operand; swapped: it is transposed first.
    """
    rng = np.random.default_rng(7)
    shape = ((GROUPS, OUTER, INNER) if turned != swapped else (GROUPS, INNER, OUTER))[: 3 if table == 3 else 1]
    shape = shape if table == 3 else (GROUPS, INNER)
    weight = rng.standard_normal(shape).astype(dtype)
    given_arrays = {"x": rng.standard_normal(x).astype(dtype), "index": rng.integers(-GROUPS, GROUPS, index)}
    nodes = [helper.make_node("Gather", ["w", "index"], ["rows"], axis=0)]
    name, rank = "rows", len(index) + table - 1
    if swapped:
        axes = [*range(rank - 2), rank - 1, rank - 2]
        nodes.append(helper.make_node("Transpose", ["rows"], ["turned"], perm=axes))
        name = "turned"
    nodes.append(helper.make_node("MatMul", [name, "x"] if turned else ["x", name], ["y"], "product"))
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in given_arrays.items()}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in given_arrays.items()],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_of(model, given_arrays)))
    model.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model, given_arrays


def shape_of(model: Any, arrays: dict[str, np.ndarray]) -> list[int]:
    from onnx import shape_inference

    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    return [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]


def expected(model: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, arrays)[0])


def run(model: Any, arrays: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """The operators behind the common passes, held to onnxruntime by the interpreter, and what was declined."""
    context = Context(OPTIONS)
    graph = view(run_passes(import_source(model, OPTIONS), common_passes(OPTIONS), context))
    names = [v.name for v in graph.inputs]
    (got,) = interpret(graph, dict(zip(names, arrays.values(), strict=True)))
    np.testing.assert_allclose(got, expected(model, arrays), rtol=1e-5, atol=1e-5)
    return [n.op for n in live_nodes(graph)], [d.reason for d in context.declined]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
          phases=[Phase.explicit, Phase.generate])  # fmt: skip
@given(st.lists(st.integers(1, 4), min_size=1, max_size=2), st.integers(1, 3), st.booleans(), st.booleans())
def test_matrices_are_read_where_they_lie(index: list[int], rows: int, turned: bool, swapped: bool) -> None:
    x = (*index, INNER, 1) if turned else (*index, rows, INNER)
    operators, declined = run(*product(x, tuple(index), turned, swapped))
    assert operators.count("dlc.grouped_matmul") == 1 and "dlc.matmul" not in operators and declined == []
    single = np.prod(index) * (1 if turned else rows) == 1
    assert operators.count("dlc.group_order") == (0 if single else 2)


@pytest.mark.parametrize(
    ("x", "index", "options", "reasons"),
    [
        ((3, 1, INNER), (3,), {"dtype": "float64"},
         ["matrices are copied for each row: only those of float32 are read where they lie, not float64"]),
        ((2, 3, 1, INNER), (3,), {},
         ["matrices are copied for each row: their index is not one for each of the rows"]),
        ((3, INNER, 2), (3,), {"turned": True},
         ["matrices are copied for each row: their index is not one for each of the rows"]),
    ],
)  # fmt: skip
def test_other_products_stay_and_say_why(x: Any, index: Any, options: Any, reasons: list[str]) -> None:
    operators, declined = run(*product(x, index, **options))
    assert "dlc.grouped_matmul" not in operators and "dlc.matmul" in operators
    assert declined == reasons


@pytest.mark.parametrize(
    ("x", "index", "turned"), [((3, INNER, 1), (3, 4), True), ((3, 1, INNER), (3, 4), False), ((INNER, 1), (7,), True)]
)
def test_gathered_rows_are_fused_into_dot_products(x: Any, index: Any, turned: bool) -> None:
    model, arrays = product(x, index, turned, not turned, table=2)
    operators, declined = run(model, arrays)
    assert "dlc.matmul" not in operators and declined == []
    package = dlc.compile(model)
    (got,) = dlc.load(package).run(arrays).values()
    np.testing.assert_allclose(got, expected(model, arrays), rtol=1e-5, atol=1e-5)
    assert ["take", "multiply", "sum"] in [row["fused"] for row in read(package).nodes]


def test_gathered_rows_times_several_columns_stay_a_matrix_product() -> None:
    assert "dlc.matmul" in run(*product((3, INNER, 2), (3, 4), True, table=2))[0]
