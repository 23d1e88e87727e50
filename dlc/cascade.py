"""Compile a cascade: two models in one package, of which the large one runs where the small one is not sure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc import explain
from dlc.errors import DlcError
from dlc.ir.graph import Graph
from dlc.join import join as join_packages
from dlc.package import Package
from dlc.runtime.cascade import LARGE, SMALL, confidence
from dlc.runtime.session import Session

RUNTIME = "dlc.runtime.cascade"


@dataclass(frozen=True)
class Threshold:
    """When the large model is asked: below a probability, or as rarely as an agreement with it allows.

    Attributes:
        value: the large model runs where the small one's largest probability is below it; None to choose it.
        agreement: the share of the calibration samples, in (0, 1], for which the cascade's answer must be the large
            model's.
    """

    value: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.agreement is None):
            raise DlcError("a cascade needs a threshold or an agreement: --threshold or --agreement")
        for name, number in (("threshold", self.value), ("agreement", self.agreement)):
            if number is not None and not 0 <= number <= 1:
                raise DlcError(f"the cascade's {name} must be between 0 and 1, got {number}")


def compile_cascade(
    small: Any, large: Any, threshold: Threshold, calibration: Any, compile_one: Callable[[Any], Package]
) -> Package:
    """Compile two models into a cascade; `compile_one` compiles one model.

    Raises:
        DlcError: as `dlc.compile`, and as `join`.
    """
    from dlc.compiler import import_source
    from dlc.ir.convert import view
    from dlc.options import Options

    packages = compile_one(small), compile_one(large)
    module = import_source(small, Options())
    samples = None
    if calibration is not None:
        from dlc.calibration import samples_of

        samples = samples_of(calibration, module)
    return join(*packages, is_probabilities(view(module)), threshold, samples)


def is_probabilities(graph: Graph) -> bool:
    """Whether the first output of a graph is a softmax."""
    maker = graph.producers().get(graph.outputs[0])
    return maker is not None and maker.op == "relax.nn.softmax"


def join(small: Package, large: Package, probabilities: bool, threshold: Threshold, samples: Any) -> Package:
    """The cascade of two compiled models.

    Args:
        small, large: packages of models with the same inputs and outputs.
        probabilities: the small model's first output holds probabilities.
        threshold: see `Threshold`.
        samples: calibration samples (dicts of input name -> array), or None.

    Raises:
        DlcError: the models do not fit together, or an agreement is asked for without samples.
    """
    _check(small, large)
    found = _Samples(small, large, probabilities, samples) if samples is not None else None
    if threshold.value is not None:
        value = threshold.value
    elif found is None:
        raise DlcError("choosing the cascade's threshold by agreement needs calibration data")
    else:
        assert threshold.agreement is not None
        value = found.least_threshold(threshold.agreement)
    build = {"threshold": value, "probabilities": probabilities, "asked": None, "agreement": None}
    if found is not None:
        build |= found.measured(value)
    packages = {SMALL: small, LARGE: large}
    return join_packages(packages, small, {"runtime": RUNTIME, "build": build}, head=[_head(packages, build)])


def _check(small: Package, large: Package) -> None:
    for role in ("inputs", "outputs"):
        ours, theirs = small.manifest[role], large.manifest[role]
        for a, b in zip(ours, theirs, strict=False):
            pairs = zip(a["shape"], b["shape"], strict=False)
            differ = any(isinstance(d, int) and isinstance(e, int) and d != e for d, e in pairs)
            if differ or a["dtype"] != b["dtype"] or len(a["shape"]) != len(b["shape"]) or not a["shape"]:
                raise DlcError(f"the cascade's models differ in {role}: {_text(a)} and {_text(b)}")
        if len(ours) != len(theirs):
            raise DlcError(f"the cascade's models have {len(ours)} and {len(theirs)} {role}")
    first = small.manifest["outputs"][0]
    if len(first["shape"]) < 2 or not first["dtype"].startswith(("float", "bfloat")):
        raise DlcError(f"the cascade's first output must score classes (samples, classes), and is {_text(first)}")


def _text(info: Mapping[str, Any]) -> str:
    return f"{info['name']}: {info['dtype']}[{', '.join(str(d) for d in info['shape'])}]"


class _Samples:
    """What both models say of the calibration samples: how sure the small one is, and whether they agree."""

    def __init__(self, small: Package, large: Package, probabilities: bool, samples: Any) -> None:
        sessions = Session(small), Session(large)
        sure, agree = [], []
        for sample in samples:
            a, b = (next(iter(session.run(_renamed(session, sample)).values())) for session in sessions)
            sure.append(confidence(a, probabilities))
            same = a.argmax(axis=-1) == b.argmax(axis=-1)
            agree.append(same.reshape(len(same), -1).all(axis=-1))
        self.sure, self.agree = np.concatenate(sure), np.concatenate(agree)

    def least_threshold(self, agreement: float) -> float:
        """The least threshold at which the cascade agrees with the large model on that share of the samples."""
        order = np.argsort(self.sure)
        # With the threshold just above the k least sure samples, the rest keeps the small model's answers.
        wrong = np.concatenate([np.cumsum(~self.agree[order][::-1])[::-1], [0]])
        needed = int(np.argmax(wrong <= (1 - agreement) * len(order) + 1e-9))
        if needed == 0:
            return 0.0
        return float(np.nextafter(self.sure[order][needed - 1], 2.0))

    def measured(self, threshold: float) -> dict[str, float]:
        """The share of the samples that the large model is asked for, and for which the answers are its own."""
        asked = self.sure < threshold
        return {"asked": float(asked.mean()), "agreement": float((asked | self.agree).mean())}


def _renamed(session: Session, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A sample, whose arrays are named as the small model's inputs, for either model."""
    return dict(zip((info.name for info in session.inputs), sample.values(), strict=True))


def _head(packages: Mapping[str, Package], build: Mapping[str, Any]) -> dict[str, Any]:
    """The explanation's first row: when the large model is asked, and what that costs."""
    when = f"asks the large model where the largest probability is below {build['threshold']:.4g}"
    head: dict[str, Any] = {"node": "cascade", "op": "", "value": "", "kernel": when}
    if build["asked"] is not None:
        asked, agreement = build["asked"], build["agreement"]
        head["kernel"] += f": {asked:.1%} of the calibration samples; {agreement:.1%} are answered as it answers"
        costs = {name: _predicted(package) for name, package in packages.items()}
        head["predicted_us"] = costs[SMALL] + build["asked"] * costs[LARGE]
    return head


def _predicted(package: Package) -> float:
    """Microseconds; of several levels those of the best that this machine runs."""
    return sum(row.get("predicted_us") or 0.0 for row in explain.read(package.chosen()).nodes)
