"""Small IR modules that several tests of passes use."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from dlc.ir.convert import FunctionBuilder
from dlc.ir.graph import Origin


class Net:
    """A channels-first network under construction, with seeded weights."""

    def __init__(self, shape: tuple[int, ...], symbolic: bool = False) -> None:
        self.rng = np.random.default_rng(0)
        self.builder = FunctionBuilder()
        batch: Any = tirx.Var("N", "int64") if symbolic else shape[0]
        self.batch = batch
        self.x = self.builder.input("image", (batch, *shape[1:]), "float32")

    def emit(self, op: str, inputs: list[Any], origin: str = "", **attrs: Any) -> Any:
        """One node; arrays among the inputs become constants."""
        made = [self.builder.constant(i) if isinstance(i, np.ndarray) else i for i in inputs]
        return self.builder.emit(op, made, attrs, Origin(op.rsplit(".", 1)[-1], origin, origin))

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Random float32."""
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def conv(
        self, x: Any, channels: int, out: int, kernel: int = 3, stride: int = 1, pad: int = 1, name: str = ""
    ) -> Any:
        """Convolution and bias."""
        weight = self.normal(out, channels, kernel, kernel, scale=(2 / (channels * kernel**2)) ** 0.5)
        y = self.emit(
            "dlc.conv", [x, weight], strides=[stride, stride], pads=[pad] * 4, dilations=[1, 1], groups=1,
            layout="channels_first", out_dtype="float32",
        )  # fmt: skip
        return self.emit("relax.add", [y, self.normal(out, 1, 1)], name)

    def finish(self, *outputs: Any) -> Any:
        """The module."""
        names = [f"y{i}" for i in range(len(outputs))]
        return self.builder.finish(list(outputs), {"inputs": ["image"], "outputs": names})


def residual(symbolic: bool = False) -> Any:
    """Stem, a residual block, a strided block with projection, mean, dense: image (2, 3, 14, 14) -> (2, 10)."""
    net = Net((2, 3, 14, 14), symbolic)

    def relu(x: Any, name: str) -> Any:
        return net.emit("relax.nn.relu", [x], name)

    y = relu(net.conv(net.x, 3, 16), "stem")
    z = net.conv(relu(net.conv(y, 16, 16), "a1"), 16, 16)
    y = relu(net.emit("relax.add", [y, z]), "a")
    z = net.conv(relu(net.conv(y, 16, 32, stride=2), "b1"), 32, 32)
    s = net.conv(y, 16, 32, kernel=1, stride=2, pad=0, name="projection")
    y = relu(net.emit("relax.add", [s, z]), "b")
    y = net.emit("relax.mean", [y], "mean", axes=[2, 3], keepdims=True)
    y = net.emit("relax.reshape", [y], shape=(net.batch, 32))
    y = net.emit("dlc.matmul", [y, net.normal(32, 10)], out_dtype="float32")
    return net.finish(net.emit("relax.add", [y, net.normal(10)], "logits"))
