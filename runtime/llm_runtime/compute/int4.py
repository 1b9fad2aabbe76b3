"""Linear weights as 4-bit integers, in groups of 32 inputs with a scale and a zero point each.

`w[n, k] ≈ (q[n, k] - zero[n, g]) * scale[n, g]` with q from 0 to 15 and g = k // 32. With the
compiled kernels, a CPU multiplies integers (`products.BlockLinear`). Checkpoints whose groups are a
multiple of 32 are brought into this form without a loss.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.compute import native
from llm_runtime.compute.int8 import CHUNK

GROUP = 32
"""Inputs that share a scale and a zero point."""
LEVELS = 15
"""The largest q."""
_LEAST = 1e-30
"""So that no division is by zero."""


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A weight of [outputs, inputs] as it is stored. Its scales are `scale * factor[:, None]`: so
    float16 holds those of every checkpoint, whatever their magnitude."""

    q: Any
    """uint8 [outputs, inputs], 0 to 15."""
    scale: Any
    """float16 [outputs, groups of 32]."""
    factor: Any
    """float32 [outputs], powers of two."""
    zero: Any
    """uint8 [outputs, groups of 32]."""

    @classmethod
    def of(cls, q: Any, scale: Any, zero: Any = None) -> "Int4Weight":
        """Check and narrow a weight of a checkpoint or of `quantize_weight`.

        `q` is [outputs, inputs]. `scale` and `zero` are [outputs, groups], where groups are of 32
        inputs, of a multiple of 32, or one for all; the zero point is 8 if `zero` is None. Raises
        ValueError, which says what is wrong, for numbers or groups that have no place here.
        """
        outputs, inputs = q.shape
        if scale.dim() != 2 or len(scale) != outputs:
            raise ValueError(f"scales are {list(scale.shape)} for {outputs} outputs")
        if not scale.isfinite().all():
            raise ValueError("some scales are not finite")
        if q.numel() and int(q.max()) > LEVELS:
            raise ValueError("some weights need more than 4 bits")
        zero = torch.full(scale.shape, 8, dtype=torch.uint8) if zero is None else _whole(zero)
        if zero.shape != scale.shape:
            raise ValueError(f"zero points are {list(zero.shape)}, scales {list(scale.shape)}")
        scale, factor = narrow(scale)
        return cls(q, _by_32(scale, inputs), factor, _by_32(zero, inputs))

    def dequantized(self) -> Any:
        """The weight as float32 [outputs, inputs]."""
        scale = self.scale.float() * self.factor.unsqueeze(1)
        return _multiplied(self.q, scale, self.zero)


class Int4Linear(nn.Module):  # type: ignore[misc]  # mypy sees no torch
    """Replaces a `torch.nn.Linear` on a GPU, and on a CPU without the compiled kernels.

    Dequantises the weight at each call: saves memory, not time. Activations are not quantised.
    """

    def __init__(self, linear: Any, weight: Int4Weight) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        even = F.pad(weight.q, (0, self.in_features % 2))
        self.register_buffer("weight", even[:, ::2] | even[:, 1::2] << 4)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("factor", weight.factor)
        self.register_buffer("zero", weight.zero)

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features], in the input's dtype."""
        q = torch.stack((self.weight & LEVELS, self.weight >> 4), dim=2).flatten(1)
        weight = Int4Weight(q[:, : self.in_features], self.scale, self.factor, self.zero)
        return F.linear(x, weight.dequantized().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}"
        )


def quantize_weight(weight: Any, counts: Any = None) -> Int4Weight:
    """Quantise [outputs, inputs], some outputs at a time. `counts` [inputs] says how much an error at
    an input counts, as the mean square of what comes there; None: all alike.
    Scales are not finite where the weight is not."""
    inputs = weight.shape[1]
    counts = torch.ones(inputs) if counts is None else counts.float()
    parts = [_quantised(rows, counts) for rows in weight.split(max(1, CHUNK // inputs))]
    return Int4Weight(
        *(torch.cat([getattr(part, name) for part in parts]) for name in Int4Weight.__slots__)
    )


def narrow(scale: Any) -> tuple[Any, Any]:
    """[outputs, groups] as float16 times a power of two for each output."""
    scale = scale.float()
    _, exponent = torch.frexp(scale.abs().amax(dim=1))
    factor = torch.ldexp(torch.ones(len(scale)), exponent - 1)
    return (scale / factor.unsqueeze(1)).half(), factor


def _quantised(rows: Any, counts: Any) -> Int4Weight:
    outputs, inputs = rows.shape
    groups = F.pad(rows.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    scale, zero = _ranges(groups, F.pad(counts, (0, -inputs % GROUP)))
    half, factor = narrow(scale)
    stored = half.float().mul_(factor.unsqueeze(1)).clamp_(min=_LEAST).unsqueeze(2)
    q = _levels(groups, stored, zero.unsqueeze(2)).to(torch.uint8).flatten(1)
    return Int4Weight(q[:, :inputs], half, factor, zero.to(torch.uint8))


def _ranges(groups: Any, counts: Any) -> tuple[Any, Any]:
    """Scale and zero point of each group: with the compiled kernels those of several tried with the
    least error, else those that hold its least and its largest weight."""
    low = groups.amin(dim=2).clamp_(max=0)
    size = (groups.amax(dim=2).clamp_(min=0) - low).clamp_(min=_LEAST)
    scale = size / LEVELS
    zero = (low / size * -LEVELS).round_()
    if native.library() is not None and scale.isfinite().all():
        outputs, count, _ = groups.shape
        groups = groups.contiguous()
        native.call(
            "llm_int4_ranges", "float32", groups.data_ptr(), counts.data_ptr(), outputs, count * GROUP,
            scale.data_ptr(), zero.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return scale, zero


def _levels(groups: Any, scale: Any, zero: Any) -> Any:
    return (groups / scale).add_(zero).round_().clamp_(0, LEVELS)


def _multiplied(q: Any, scale: Any, zero: Any) -> Any:
    inputs = q.shape[1]
    groups = F.pad(q, (0, -inputs % GROUP)).view(len(q), -1, GROUP).float()
    return ((groups - zero.unsqueeze(2)) * scale.unsqueeze(2)).flatten(1)[:, :inputs]


def _whole(zero: Any) -> Any:
    """Zero points as uint8. Raises ValueError for others than whole numbers from 0 to 255."""
    narrowed = zero.to(torch.uint8)
    if not torch.equal(narrowed.to(zero.dtype), zero):
        raise ValueError("some zero points are no whole numbers from 0 to 255")
    return narrowed


def _by_32(groups: Any, inputs: int) -> Any:
    """[outputs, groups] for groups of 32 inputs."""
    wanted = math.ceil(inputs / GROUP)
    count = groups.shape[1]
    if count not in (1, wanted) and inputs % (count * GROUP):
        raise ValueError(f"{inputs} inputs in {count} groups: no multiple of {GROUP} inputs each")
    return groups.repeat_interleave(-(-wanted // count), dim=1)
