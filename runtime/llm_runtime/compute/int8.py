"""Linear weights as 8-bit integers: a quarter of float32's memory, half of bfloat16's.

Symmetric, one scale for each output: `w[n, k] ≈ q[n, k] * scale[n]` with
`scale[n] = max|w[n]| / 127`. With the compiled kernels, a CPU multiplies integers
(`products.BlockLinear`): each row of activations is quantised by itself, in groups of 32 with a
scale each. In large models a few activations are very large (Dettmers et al. 2022, LLM.int8()); one
such costs precision in its group only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1 << 18
"""Weights quantised at a time: what the processor's cache holds."""


class Int8Linear(nn.Module):  # type: ignore[misc]  # mypy sees no torch
    """Replaces a `torch.nn.Linear` on a GPU, and on a CPU without the compiled kernels.

    Activations are not quantised: computes in bfloat16 with float32 sums on a CPU, else in the
    input's dtype, which it returns.
    """

    def __init__(self, linear: nn.Linear, weight: Any, scale: Any) -> None:
        """`weight` and `scale` as of `quantize_weight`."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        if x.device.type == "cpu":
            rows = rows.bfloat16().contiguous()
            out = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16()).to(
                x.dtype
            )
        else:
            out = F.linear(rows, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def rows(self, outputs: Any) -> Any:
        """The weights of some outputs as float32, [..., in_features]."""
        return self.weight[outputs] * self.scale[outputs].unsqueeze(-1)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}"
        )


def quantize_weight(weight: Any) -> tuple[Any, Any]:
    """Quantise [outputs, inputs] to int8, some outputs at a time.
    Returns it with a float32 scale for each output."""
    parts = [_quantised(rows.float()) for rows in weight.split(max(1, CHUNK // weight.shape[1]))]
    numbers, scales = zip(*parts, strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _quantised(rows: Any) -> tuple[Any, Any]:
    scale = (rows.abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (rows / scale.unsqueeze(1)).round_().to(torch.int8), scale
