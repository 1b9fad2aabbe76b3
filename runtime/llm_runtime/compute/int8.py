"""Linear weights as 8-bit integers: a quarter of float32's memory, half of bfloat16's.

Symmetric, one scale for each output: `w[n, k] ≈ q[n, k] * scale[n]` with
`scale[n] = max|w[n]| / 127`. With the compiled kernels, a CPU multiplies integers
(`products.BlockLinear`): each row of activations is quantised by itself, in groups of 64 with a
scale each. In large models a few activations are very large (Dettmers et al. 2022, LLM.int8()); one
such costs precision in its group only.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.compute import native
from llm_runtime.compute.products import BlockLinear
from llm_runtime.errors import ModelCorrupt
from llm_runtime.machine.heap import Replaced


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

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}"
        )


def quantize_weight(weight: Any) -> tuple[Any, Any]:
    """Quantise [outputs, inputs] to int8. Returns it with a float32 scale for each output."""
    scale = (weight.float().abs().amax(dim=1) / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (weight.float() / scale.unsqueeze(1)).round_().to(torch.int8), scale


def quantize_int8(model: nn.Module, forward: Callable[[], object], device: str) -> int:
    """Replace the linear layers of `model`, which is in host memory and will run on `device`, in
    place, one by one. Returns the bytes saved. Raises ModelCorrupt for weights without a scale.

    Three kinds of layers stay as they are:
    - those that are never called when `forward` runs the model:
      it then uses their weight directly (Jamba's `dt_proj`);
    - those whose weight is shared with another module,
      because an int8 copy beside the original would cost memory;
    - the output layer, because rounding there changes tokens most directly.
    """
    names = _called(model, forward)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    shared = _shared_weights(model)
    blocks = device == "cpu" and native.library() is not None
    saved = 0
    replaced = Replaced()
    # `pop` drops the reference to each layer,
    # so that its old weight is freed as soon as it is replaced.
    remaining = list(model.named_modules())[::-1]
    while remaining:
        path, module = remaining.pop()
        parent, _, name = path.rpartition(".")
        if (
            type(module) is not nn.Linear
            or module is head
            or name not in names
            or id(module.weight) in shared
        ):
            continue
        replacement = _quantized(module, path, blocks=blocks)
        saved += module.weight.nbytes - replacement.weight.nbytes - replacement.scale.nbytes
        size = module.weight.nbytes
        setattr(model.get_submodule(parent), name, replacement)
        replaced.add(size)
    return saved


def _quantized(linear: nn.Linear, path: str, *, blocks: bool) -> nn.Module:
    weight, scale = quantize_weight(linear.weight.detach())
    if not scale.isfinite().all():
        raise ModelCorrupt(
            f"{path}.weight has numbers that are not finite, which have no place among 8-bit"
            " integers: correct the checkpoint, or set engine.quantization to none"
        )
    return BlockLinear(linear, weight, scale) if blocks else Int8Linear(linear, weight, scale)


def _called(model: nn.Module, forward: Callable[[], object]) -> set[str]:
    paths = {module: path for path, module in model.named_modules() if type(module) is nn.Linear}
    names: set[str] = set()

    def note(module: nn.Module, _: object) -> None:
        names.add(paths[module].rpartition(".")[2])

    hooks = [module.register_forward_pre_hook(note) for module in paths]
    forward()
    for hook in hooks:
        hook.remove()
    return names


def _shared_weights(model: nn.Module) -> set[int]:
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}
