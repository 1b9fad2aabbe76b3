"""Linear layers in the memory order of the compiled products (products.cpp): a product of few rows
takes as long as reading its weights.

A weight is kept in one form only: float32, bfloat16 or 8-bit integers. Layers that read the same
input can be multiplied in one call.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.compute import native

BLOCK_OUTPUTS = 16
"""Outputs that lie together, as in products.cpp."""
ROWS = 4096
"""Outputs compared at a time: a whole copy would be the peak of loading."""
_TOGETHER = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
"""Inputs of one output that lie together, by the weights' number format."""
_NAMES = {
    torch.float32: "llm_product_float32",
    torch.bfloat16: "llm_product_bfloat16",
    torch.uint8: "llm_product_int8",
}
_INPUTS = {
    torch.float32: {torch.float32: "float32"},
    torch.bfloat16: native.KERNELS,
    torch.uint8: native.KERNELS,
}
"""Number formats of inputs that the product of a weight format takes, with their names."""


class BlockLinear(nn.Module):  # type: ignore[misc]  # mypy sees no torch
    """Replaces a `torch.nn.Linear` on a CPU. Needs the compiled kernels.

    `weight` is [outputs, inputs] in float32 or bfloat16, or int8 with a float32 `scale` for each
    output. Sums are float32, and the answer has the number format of the input.
    """

    def __init__(self, linear: Any, weight: Any, scale: Any = None) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.register_buffer("weight", in_blocks(weight), persistent=False)
        self.register_buffer("scale", _padded(scale), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", _padded(bias), persistent=False)
        self.product = Product((self,))

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features]."""
        return self.product(x)[0]

    def rows(self, outputs: Any) -> Any:
        """The weights of some outputs, [..., in_features], as they are stored. Not for int8."""
        found = self.weight[outputs // BLOCK_OUTPUTS, :, outputs % BLOCK_OUTPUTS]
        return found.flatten(-2)[..., : self.in_features]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}"
        )


class Product:
    """The product of one input with several layers. They have the same inputs and weight format.

    `name` is its kernel's, `formats` the number formats of inputs that the kernel takes."""

    def __init__(self, layers: Sequence[BlockLinear]) -> None:
        first = layers[0]
        self.inputs = first.in_features
        self._outputs = [layer.out_features for layer in layers]
        self.name = _NAMES[first.weight.dtype]
        self.formats = _INPUTS[first.weight.dtype]
        # The kernel gets addresses, so the tensors must live as long as this.
        self._kept = [(layer.weight, layer.scale, layer.bias) for layer in layers]
        self.layers = (native.LayerArguments * len(layers))(
            *(
                native.LayerArguments(_address(weight), _address(scale), _address(bias), outputs)
                for (weight, scale, bias), outputs in zip(self._kept, self._outputs, strict=True)
            )
        )

    def __call__(self, x: Any) -> list[Any]:
        """[..., inputs] → [..., outputs] of each layer."""
        if x.shape[-1] != self.inputs:
            raise RuntimeError(f"the layer has {self.inputs} inputs, not {x.shape[-1]}")
        number_format = self.formats.get(x.dtype)
        if number_format is None:
            return [out.to(x.dtype) for out in self(x.float())]
        x = x.contiguous()
        *shape, _ = x.shape
        rows = x.numel() // self.inputs
        out = x.new_empty(rows * sum(self._outputs))
        native.call(
            self.name, number_format, x.data_ptr(), out.data_ptr(), rows, self.inputs,
            ctypes.addressof(self.layers), len(self._outputs), torch.get_num_threads(),
        )  # fmt: skip
        if len(self._outputs) == 1:
            return [out.view(*shape, self._outputs[0])]
        parts = out.split([rows * outputs for outputs in self._outputs])
        return [
            part.view(*shape, outputs) for part, outputs in zip(parts, self._outputs, strict=True)
        ]


class Together:
    """Layers that read the same input: one product where they are alike and nobody watches them,
    else each by itself."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        alike = all(isinstance(layer, BlockLinear) for layer in layers) and (
            len({(layer.in_features, layer.weight.dtype) for layer in layers}) == 1
        )
        self.product = Product(layers) if alike else None

    def __call__(self, x: Any) -> list[Any]:
        """[..., inputs] → [..., outputs] of each layer."""
        # An adapter gives a layer a `forward` of its own, and learns by hooks what a layer reads.
        if self.product is None or any(
            "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
            for layer in self._layers
        ):
            return [layer(x) for layer in self._layers]
        return self.product(x)


def in_blocks(weight: Any) -> Any:
    """Bring [outputs, inputs] of float32, bfloat16 or int8 into the order of products.cpp.
    int8 becomes uint8, with 128 added."""
    together = _TOGETHER[weight.dtype]
    outputs, inputs = weight.shape
    missing = (-inputs % max(together, 2), -outputs % native.limit("product_outputs"))
    if any(missing):
        weight = F.pad(weight, (0, missing[0], 0, missing[1]))
    blocks = weight.reshape(-1, BLOCK_OUTPUTS, weight.shape[1] // together, together)
    ordered = blocks.transpose(1, 2).contiguous()
    return ordered.view(torch.uint8).bitwise_xor_(128) if weight.dtype is torch.int8 else ordered


def as_stored(weight: Any) -> Any:
    """A float32 weight [outputs, inputs] as bfloat16; None where that would change a number."""
    narrow = torch.empty(weight.shape, dtype=torch.bfloat16)
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS]
        narrow[start : start + ROWS] = rows
        if not torch.equal(narrow[start : start + ROWS].float(), rows):
            return None
    return narrow


def _padded(numbers: Any) -> Any:
    """[outputs] with zeros up to the padded number of outputs."""
    if numbers is None:
        return None
    return F.pad(numbers, (0, -len(numbers) % native.limit("product_outputs")))


def _address(tensor: Any) -> int | None:
    return None if tensor is None else tensor.data_ptr()
