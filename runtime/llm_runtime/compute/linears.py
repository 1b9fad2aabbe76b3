"""Linear layers with weights packed for oneDNN, where a measurement at start-up shows a gain.

Weights are reordered once. On processors that MKL was not tuned for, torch's plain float32 product
runs at a third of the packed one's speed. The operations are private to torch's compiler; if they
are missing, no layer is changed. A clear result is remembered for this kind of machine.
"""

import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.machine.heap import Replaced
from llm_runtime.machine.remembered import Remembered, cache_folder, cpu_flags, cpu_name

log = logging.getLogger(__name__)

PACKED_FOR = 32
"""Number of rows that oneDNN optimises the packed layout for."""
ROWS = (8, 32, 128)
"""Numbers of rows measured: few streams, many streams, a chunk of a prompt.
A single row is bound by memory anyway."""
_REPEATS = 12
_LEAST_REPEATS = 3
_SECONDS = 0.02
"""After so long no further repeats: those of a large product differ by less than small ones'."""
_LEAST_GAIN = 1.05
_CLEAR = 1.15
"""A gain that is this factor off 1, up or down, is remembered. What is close may be noise, and is
measured again at the next start."""
_NAMES = ("_reorder_linear_weight", "_linear_pointwise")


class PackedLinear(nn.Module):  # type: ignore[misc]
    """An `nn.Linear` whose weight is kept only in oneDNN's layout."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR)

    def forward(self, inputs: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


def pack_linears(model: Any) -> None:
    """Replace the layers that become faster.
    A weight that is shared with an embedding is then in memory twice."""
    if not all(hasattr(torch.ops.mkldnn, name) for name in _NAMES):
        log.info("this version of torch has no packed linear layers")
        return
    remaining = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu"
    ]
    keyed = [
        ((linear.out_features, linear.in_features, linear.weight.dtype), linear)
        for _, _, linear in remaining
    ]
    shapes = Counter(shape for shape, _ in keyed)
    # Measured with the model's own weights: a new one would take as much as the largest,
    # a fifth of a small model.
    weights = {shape: linear.weight for shape, linear in keyed}
    del keyed
    with torch.inference_mode():
        gains = _gains(weights)
        del weights
        # `pop` and `del` drop the references to each layer,
        # so that its old weight is freed as soon as it is packed.
        replaced = Replaced()
        while remaining:
            parent, name, linear = remaining.pop()
            if gains[linear.out_features, linear.in_features, linear.weight.dtype] >= _LEAST_GAIN:
                setattr(parent, name, PackedLinear(linear))
                size = linear.weight.nbytes
                del linear
                replaced.add(size)
    packed = sum(shapes[shape] for shape, gain in gains.items() if gain >= _LEAST_GAIN)
    log.info(
        "linear layers packed",
        extra={
            "packed": packed,
            "of": shapes.total(),
            "gains": {f"{n}x{k}": round(g, 2) for (n, k, _), g in gains.items()},
        },
    )


def _gains(weights: dict[tuple[int, int, Any], Any]) -> dict[tuple[int, int, Any], float]:
    """The gain of each shape: remembered, or measured now."""
    memory = _memory()
    known = memory.read()
    gains = {shape: known.get(_name(shape)) or _gain(weights[shape].detach()) for shape in weights}
    memory.add(
        {
            name: gain
            for shape, gain in gains.items()
            if (name := _name(shape)) not in known and not 1 / _CLEAR < gain < _CLEAR
        }
    )
    return gains


def _memory() -> Remembered:
    """What the gains depend on: the processor, its threads, torch's libraries, and this code."""
    depends_on = (
        cpu_name(),
        " ".join(sorted(cpu_flags())),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        torch.__version__,
        Path(__file__).read_text(encoding="utf-8"),
    )
    return Remembered("linears", depends_on, cache_folder("measured"))


def _name(shape: tuple[int, int, Any]) -> str:
    outputs, inputs, dtype = shape
    return f"{outputs}x{inputs} {str(dtype).removeprefix('torch.')}"


def _gain(weight: Any) -> float:
    """Speed-up of the packed product, as the geometric mean over ROWS;
    0 if it does not run here."""
    _, in_features = weight.shape
    dtype = weight.dtype
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
        gains = [
            _speedup(torch.randn(rows, in_features, dtype=dtype), weight, packed) for rows in ROWS
        ]
    except RuntimeError as error:
        log.info(
            "packed linear layers do not run here",
            extra={"reason": str(error), "dtype": str(dtype)},
        )
        return 0.0
    return math.prod(gains) ** (1 / len(gains))


def _speedup(inputs: Any, weight: Any, packed: Any) -> float:
    """Best time of the plain product divided by that of the packed one.
    Noise only adds time, so the best is truest."""
    plain_seconds = packed_seconds = float("inf")
    began = time.perf_counter()
    for repeat in range(_REPEATS):
        started = time.perf_counter()
        if repeat >= _LEAST_REPEATS and started - began > _SECONDS:
            break
        F.linear(inputs, weight)
        between = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")
        plain_seconds = min(plain_seconds, between - started)
        packed_seconds = min(packed_seconds, time.perf_counter() - between)
    return plain_seconds / packed_seconds
