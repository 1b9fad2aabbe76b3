"""Linear layers in the memory order of the compiled products (products.cpp): a product of few rows
takes as long as reading its weights.

A weight is kept in one form only: float32, bfloat16, or integers of 8 or 4 bits. Layers that read
the same input can be multiplied in one call.
"""

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.compute import int4, int8, native
from llm_runtime.compute.int4 import Int4Linear, Int4Weight
from llm_runtime.compute.int8 import Int8Linear

log = logging.getLogger(__name__)

BLOCK_OUTPUTS = 16
"""Outputs that lie together, as in products.cpp."""
ROWS = 4096
"""Outputs compared at a time: a whole copy would be the peak of loading."""
_TOGETHER = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
"""Inputs of one output that lie together, by the weights' number format."""
_KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
_FLOAT32 = {torch.float32: "float32"}
"""Number formats of inputs that the product of float32 weights takes, with their names. The other
products take all of native.KERNELS."""
_CHECKED = (33, 130)
"""Outputs and inputs of the layer that a product is checked with: blocks and groups with a rest."""
ROWS_CHECKED = 25
"""Rows of its input: whole tiles, a rest, and so many that weights are widened."""
_ALLOWED = 0.02
"""Relative difference that rounding of activations to 8 bits explains."""


class BlockLinear(nn.Module):  # type: ignore[misc]  # mypy sees no torch
    """Replaces a `torch.nn.Linear` on a CPU. Needs the compiled kernels.

    `weight` is [outputs, inputs] in float32 or bfloat16, int8 with a float32 `scale` for each
    output, or an `Int4Weight`. Sums are float32, and the answer has the number format of the input.
    """

    def __init__(
        self, linear: Any, weight: Any, scale: Any = None, *, as_stored: bool = False
    ) -> None:
        """`as_stored`: a float32 weight that is bfloat16 without a loss becomes bfloat16."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        narrow = in_blocks(weight, narrow=True) if as_stored else None
        if isinstance(weight, Int4Weight):
            self.kind = "int4"
            blocks = int4_in_blocks(weight)
            scale = weight.factor
        elif narrow is not None:
            self.kind = "bfloat16"
            blocks = narrow
        else:
            self.kind = _KINDS[weight.dtype]
            blocks = in_blocks(weight)
        self.register_buffer("weight", blocks, persistent=False)
        self.register_buffer("scale", _padded(scale), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", _padded(bias), persistent=False)
        self.product = Product((self,))

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features]."""
        return self.product(x)[0]

    def rows(self, outputs: Any) -> Any:
        """The weights of some outputs, [..., in_features]: float32 or bfloat16 as they are stored,
        integers as the float32 numbers that they stand for."""
        block = outputs // BLOCK_OUTPUTS
        lane = outputs % BLOCK_OUTPUTS
        if self.kind == "int4":
            groups = int4_of_blocks(self.weight[block.flatten()], lane.flatten())
            found = groups.view(*outputs.shape, -1)
        else:
            found = self.weight[block, :, lane].flatten(-2)
        if self.kind == "int8":
            found = found.bitwise_xor(128).view(torch.int8).float()
        if self.scale is not None:
            found = found * self.scale[outputs].unsqueeze(-1)
        return found[..., : self.in_features]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}"
        )


class Product:
    """The product of one input with several layers. They have the same inputs and kind of weights.

    `name` is its kernel's, `formats` the number formats of inputs that the kernel takes."""

    def __init__(self, layers: Sequence[BlockLinear]) -> None:
        first = layers[0]
        self.inputs = first.in_features
        self._outputs = [layer.out_features for layer in layers]
        self.name = f"llm_product_{first.kind}"
        self.formats = _FLOAT32 if first.kind == "float32" else native.KERNELS
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
            len({(layer.in_features, layer.kind) for layer in layers}) == 1
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


def in_blocks(weight: Any, narrow: bool = False) -> Any:
    """Bring [outputs, inputs] of float32, bfloat16 or int8 into the order of products.cpp, [blocks,
    inputs, outputs of a block, inputs that lie together]. int8 becomes uint8, with 128 added.

    `narrow` makes bfloat16 of float32, and None where that would change a number.
    """
    together = 2 if narrow else _TOGETHER[weight.dtype]
    outputs, inputs = weight.shape
    multiple = native.limit("product_outputs")
    blocks = torch.empty(
        (outputs + -outputs % multiple) // BLOCK_OUTPUTS,
        (inputs + -inputs % max(together, 2)) // together, BLOCK_OUTPUTS, together,
        dtype=torch.bfloat16 if narrow else torch.uint8 if weight.dtype is torch.int8 else weight.dtype,
    )  # fmt: skip
    lost = torch.zeros(1, dtype=torch.int32)
    native.call(
        "llm_blocks", "float32_bfloat16" if narrow else _KINDS[weight.dtype], weight.contiguous().data_ptr(),
        blocks.data_ptr(), outputs, inputs, torch.get_num_threads(), lost.data_ptr(),
    )  # fmt: skip
    return None if lost.any() else blocks


def int4_in_blocks(weight: Int4Weight) -> Any:
    """A weight of 4 bits in the order of products.cpp: uint8 [blocks, groups, bytes of Nibbles]."""
    outputs, inputs = weight.q.shape
    missing = -outputs % native.limit("product_outputs")
    q = F.pad(weight.q, (0, -inputs % int4.GROUP, 0, missing))
    scale, zero = (F.pad(part, (0, 0, 0, missing)) for part in (weight.scale, weight.zero))
    groups = scale.shape[1]
    low, high = q.view(-1, BLOCK_OUTPUTS, groups, int4.GROUP // 8, 2, 4).unbind(4)
    fours = (low | high << 4).permute(0, 2, 3, 1, 4).flatten(2)
    scale = scale.view(-1, BLOCK_OUTPUTS, groups).transpose(1, 2).contiguous().view(torch.uint8)
    zero = zero.view(-1, BLOCK_OUTPUTS, groups).transpose(1, 2)
    return torch.cat((fours, scale, zero), dim=2)


def int4_of_blocks(blocks: Any, lanes: Any) -> Any:
    """One output of each of some blocks, float32 [blocks, padded inputs], without the factor."""
    count, groups, _ = blocks.shape
    parts = blocks.split((BLOCK_OUTPUTS * int4.GROUP // 2, 2 * BLOCK_OUTPUTS, BLOCK_OUTPUTS), dim=2)
    fours, scale, zero = parts
    which = torch.arange(count)
    fours = fours.reshape(count, groups, int4.GROUP // 8, BLOCK_OUTPUTS, 4)[which, :, :, lanes]
    q = torch.stack((fours & int4.LEVELS, fours >> 4), dim=3).reshape(count, groups, int4.GROUP)
    scale = scale.contiguous().view(torch.float16)[which, :, lanes].float()
    return ((q.float() - zero[which, :, lanes].unsqueeze(2)) * scale.unsqueeze(2)).flatten(1)


def int8_linear(linear: Any, weight: Any, scale: Any, device: str = "cpu") -> Any:
    """The layer that multiplies weights of 8 bits on `device`; `weight` and `scale` as of
    `int8.quantize_weight`."""
    blocks = device == "cpu" and usable("int8")
    return (BlockLinear if blocks else Int8Linear)(linear, weight, scale)


def int4_linear(linear: Any, q: Any, scale: Any, zero: Any = None, device: str = "cpu") -> Any:
    """The layer that multiplies weights of 4 bits on `device`, in the place of `linear`.

    `q`, `scale` and `zero` as of `Int4Weight.of`, which raises ValueError for what has no place.
    """
    return int4_layer(linear, Int4Weight.of(q, scale, zero), device)


def int4_layer(linear: Any, weight: Int4Weight, device: str = "cpu") -> Any:
    """As `int4_linear`, of a weight that is in its form already."""
    blocks = device == "cpu" and usable("int4")
    return (BlockLinear if blocks else Int4Linear)(linear, weight)


@cache
def usable(kind: str) -> bool:
    """Whether there is a compiled product of this kind of integers and it computes here what torch
    does. If it does not, a warning says so once, and torch's operations are used."""
    if native.library() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = _CHECKED
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    dense = torch.randn(outputs, inputs, generator=generator)
    x = torch.randn(ROWS_CHECKED, inputs, generator=generator)
    if kind == "int4":
        weight = int4.quantize_weight(dense)
        ours = BlockLinear(linear, weight)
        dense = weight.dequantized()
    else:
        weight, scale = int8.quantize_weight(dense)
        ours = BlockLinear(linear, weight, scale)
        dense = weight * scale.unsqueeze(1)
    expected = x.double() @ dense.double().T
    apart = float((ours(x).double() - expected).norm() / expected.norm())
    if apart <= _ALLOWED:
        return True
    log.warning(
        "the compiled product of this processor is wrong: falling back to torch's slower operations",
        extra={"weights": kind, "relative_difference": apart},
    )
    return False


def as_stored(weight: Any) -> Any:
    """A float32 weight [outputs, inputs] as bfloat16; None where that would change a number."""
    low_halves = weight.contiguous().view(torch.int16)[:, ::2]
    return None if low_halves.any() else weight.bfloat16()


def _padded(numbers: Any) -> Any:
    """[outputs] with zeros up to the padded number of outputs."""
    if numbers is None:
        return None
    return F.pad(numbers, (0, -len(numbers) % native.limit("product_outputs")))


def _address(tensor: Any) -> int | None:
    return None if tensor is None else tensor.data_ptr()
