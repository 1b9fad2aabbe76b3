"""Linear layers in the form that oneDNN likes best, where a measurement at start-up says that it pays.

Weights are reordered once. Torch's plain float32 product on processors that MKL was not made for runs at a third of
that speed. The operations are private ones of torch (its compiler uses them): without them all layers stay as they are.
"""

import logging
import math
import time
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.engine.heap import Replaced

log = logging.getLogger(__name__)

PACKED_FOR = 32
"""Rows of the products that oneDNN chooses its order for."""
ROWS = (8, 32, 128)
"""Rows measured: a few streams, many, a chunk of a prompt. One alone waits for memory, whichever way it multiplies."""
_REPEATS = 12
_LEAST_GAIN = 1.05
_NAMES = ("_reorder_linear_weight", "_linear_pointwise")


class PackedLinear(nn.Module):  # type: ignore[misc]
    """`nn.Linear` whose weight is kept in oneDNN's order only."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR)

    def forward(self, inputs: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


def pack_linears(model: Any) -> None:
    """Replace the layers that gain by it. Weights shared with an embedding are kept twice."""
    if not all(hasattr(torch.ops.mkldnn, name) for name in _NAMES):
        log.info("this torch has no packed linear layers")
        return
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu"
    ]
    shapes = Counter((linear.out_features, linear.in_features, linear.weight.dtype) for _, _, linear in found)
    # One that is there: a weight made for this would be as large as the largest, which for a small model is a fifth.
    weights = {(linear.out_features, linear.in_features, linear.weight.dtype): linear.weight for _, _, linear in found}
    with torch.inference_mode():
        gains = {shape: _gain(weights[shape].detach()) for shape in shapes}
        del weights
        # Each is let go as soon as it is packed: a list that held them all would have the weights in memory twice.
        replaced = Replaced()
        while found:
            parent, name, linear = found.pop()
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


def _gain(weight: Any) -> float:
    """How many times faster the packed product is, as the geometric mean over ROWS; 0 where it does not run."""
    _, in_features = weight.shape
    dtype = weight.dtype
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
        gains = [_speedup(torch.randn(rows, in_features, dtype=dtype), weight, packed) for rows in ROWS]
    except RuntimeError as error:
        log.info("packed linear layers do not run here", extra={"reason": str(error), "dtype": str(dtype)})
        return 0.0
    return math.prod(gains) ** (1 / len(gains))


def _speedup(inputs: Any, weight: Any, packed: Any) -> float:
    """Best time of the plain product over the best of the packed one: what disturbs a measurement only adds to it."""
    plain_seconds = packed_seconds = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        F.linear(inputs, weight)
        between = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")
        plain_seconds = min(plain_seconds, between - started)
        packed_seconds = min(packed_seconds, time.perf_counter() - between)
    return plain_seconds / packed_seconds
