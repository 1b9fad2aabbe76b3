"""Linear layers with weights in the order in memory that is fastest here, as measured at start-up.

Weights are reordered once: for oneDNN, or for our own product of few rows (`products`). On
processors that MKL was not tuned for, torch's plain float32 product runs at a third of oneDNN's
speed; with one row, ours reads the weights nearly as fast as memory gives them. oneDNN's operations
are private to torch's compiler; if they are missing, they are not tried. A clear result is
remembered for this kind of machine.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_runtime.compute import native
from llm_runtime.compute.products import BlockLinear, as_stored
from llm_runtime.machine.heap import Replaced
from llm_runtime.machine.remembered import Remembered, cache_folder, cpu_flags, cpu_name

log = logging.getLogger(__name__)

PACKED_FOR = 32
"""Number of rows that oneDNN optimises the packed layout for."""
ROWS = (1, 8, 32, 128)
"""Numbers of rows measured: one stream, few streams, many streams, a chunk of a prompt."""
_REPEATS = 12
_LEAST_REPEATS = 3
_SECONDS = 0.02
"""After so long no further repeats: those of a large product differ by less than small ones'."""
_LEAST_GAIN = 1.05
_JOINED_GAIN = 1.25
"""What blocks gain beside their own speed in a model whose layers can then run in one call
(`decoder`): 1.15 to 1.5 times as many steps of 1 to 32 rows, measured with SmolLM2-135M."""
_CLEAR = 1.15
"""A gain that is this factor off 1, up or down, is remembered. What is close may be noise, and is
measured again at the next start."""
_ROWS_SEEN = 64
"""Rows of a weight that say whether it was stored in bfloat16, for the name of its measurement."""
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


Shape = tuple[int, int, Any]
"""Outputs, inputs and number format of a weight."""


def pack_linears(model: Any, *, joinable: bool = False) -> None:
    """Replace the layers that become faster. `joinable`: all of them in blocks are worth more than
    each by itself. A weight that is shared with an embedding is then in memory twice, until `shrink_embeddings`."""
    remaining = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu"
    ]
    keyed = [(_shape(linear), linear) for _, _, linear in remaining]
    shapes = Counter(shape for shape, _ in keyed)
    # Measured with the model's own weights: a new one would take as much as the largest,
    # a fifth of a small model.
    samples = dict(keyed)
    del keyed
    with torch.inference_mode():
        gains = _gains(samples)
        del samples
        if joinable:
            gains = {shape: _with_joining(ways) for shape, ways in gains.items()}
        best = {shape: max(ways, key=ways.__getitem__, default="") for shape, ways in gains.items()}
        chosen = {
            shape: way for shape, way in best.items() if way and gains[shape][way] >= _LEAST_GAIN
        }
        # `pop` and `del` drop the references to each layer,
        # so that its old weight is freed as soon as it is packed.
        replaced = Replaced()
        while remaining:
            parent, name, linear = remaining.pop()
            if way := chosen.get(_shape(linear)):
                setattr(parent, name, _WAYS[way](linear))
                size = linear.weight.nbytes
                del linear
                replaced.add(size)
    log.info(
        "linear layers packed",
        extra={
            "packed": sum(shapes[shape] for shape in chosen),
            "of": shapes.total(),
            "ways": {f"{n}x{k}": way for (n, k, _), way in chosen.items()},
            "gains": {
                f"{n}x{k}": {way: round(gain, 2) for way, gain in ways.items()}
                for (n, k, _), ways in gains.items()
            },
        },
    )


def _with_joining(ways: dict[str, float]) -> dict[str, float]:
    return ways | ({"blocks": ways["blocks"] * _JOINED_GAIN} if "blocks" in ways else {})


def _in_blocks(linear: Any) -> BlockLinear:
    """Most checkpoints are stored in bfloat16 and computed in float32. Such a weight stays as it
    was stored, and is widened as it is read: the same numbers in half the memory and time."""
    weight = linear.weight.detach()
    return BlockLinear(linear, weight, as_stored=weight.dtype is torch.float32)


_WAYS: dict[str, Callable[[Any], Any]] = {"onednn": PackedLinear, "blocks": _in_blocks}


def _ways(dtype: Any) -> list[str]:
    """What can be tried with weights of `dtype`."""
    onednn = all(hasattr(torch.ops.mkldnn, name) for name in _NAMES)
    blocks = dtype in native.KERNELS and native.library() is not None
    return [way for way, there in (("onednn", onednn), ("blocks", blocks)) if there]


def _gains(samples: dict[Shape, Any]) -> dict[Shape, dict[str, float]]:
    """The gain of each shape by each way: remembered, or measured now."""
    memory = _memory()
    known = memory.read()
    new: dict[str, float] = {}
    gains: dict[Shape, dict[str, float]] = {}
    for shape, linear in samples.items():
        names = {way: _name(linear, way) for way in _ways(linear.weight.dtype)}
        if all(name in known for name in names.values()):
            gains[shape] = {way: known[name] for way, name in names.items()}
            continue
        gains[shape] = measured = {way: _gain(linear, way) for way in names}
        if not 1 / _CLEAR < max(measured.values()) < _CLEAR:
            new |= {names[way]: gain for way, gain in measured.items()}
    memory.add(new)
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
        *(source.read_text(encoding="utf-8") for source in native.SOURCES),
    )
    return Remembered("linears", depends_on, cache_folder("measured"))


def _shape(linear: Any) -> Shape:
    return linear.out_features, linear.in_features, linear.weight.dtype


def _name(linear: Any, way: str) -> str:
    outputs, inputs, dtype = _shape(linear)
    # A weight that was stored in bfloat16 is another one to read than one that was not.
    rows = linear.weight.detach()[:_ROWS_SEEN]
    stored = ", stored narrow" if dtype is torch.float32 and as_stored(rows) is not None else ""
    return f"{outputs}x{inputs} {str(dtype).removeprefix('torch.')}{stored} {way}"


def _gain(linear: Any, way: str) -> float:
    """Speed-up of a way, as the geometric mean over ROWS; 0 if it does not run here."""
    dtype = linear.weight.dtype
    try:
        other = _WAYS[way](linear)
        gains = [
            _speedup(torch.randn(rows, linear.in_features, dtype=dtype), linear, other)
            for rows in ROWS
        ]
    except RuntimeError as error:
        log.info(
            "packed linear layers do not run here",
            extra={"reason": str(error), "dtype": str(dtype), "way": way},
        )
        return 0.0
    return math.prod(gains) ** (1 / len(gains))


def _speedup(inputs: Any, linear: Any, other: Any) -> float:
    """Best time of the plain layer divided by that of the other one.
    Noise only adds time, so the best is truest."""
    plain_seconds = other_seconds = float("inf")
    began = time.perf_counter()
    for repeat in range(_REPEATS):
        started = time.perf_counter()
        if repeat >= _LEAST_REPEATS and started - began > _SECONDS:
            break
        linear(inputs)
        between = time.perf_counter()
        other(inputs)
        plain_seconds = min(plain_seconds, between - started)
        other_seconds = min(other_seconds, time.perf_counter() - between)
    return plain_seconds / other_seconds
